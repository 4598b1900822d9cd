"use strict";

const find = (id) => document.getElementById(id);
let file = null; // the image that is searched for
let newest = 0; // the last search; answers of earlier ones are dropped

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function figure(source, alt, lines) {
  const made = element("figure");
  const image = element("img");
  image.src = source;
  image.alt = alt;
  const caption = element("figcaption");
  lines.filter(Boolean).forEach((line, place) => caption.append(element(place ? "div" : "b", line)));
  made.append(image, caption);
  return made;
}

function show(answer) {
  const pictures = answer.attention.map((one) => figure(one.image, one.name, [one.name]));
  find("query").replaceChildren(figure(answer.query, "the query", ["query"]), ...pictures);
  find("verdict").textContent = answer.verdict;
  find("matches").replaceChildren(
    ...answer.matches.map((match) => {
      const camera = match.camera && `camera ${match.camera}`;
      const lines = [match.distance.toFixed(3), match.identity, camera, match.time, match.path];
      const made = figure(match.image, match.path, lines);
      made.classList.toggle("same", match.same === true);
      return made;
    }),
  );
}

function complain(text) {
  find("error").textContent = text;
  find("error").hidden = !text;
}

async function search() {
  if (!file) return;
  const own = ++newest;
  const boxes = [...document.querySelectorAll("input[name=camera]")];
  const chosen = boxes.filter((box) => box.checked);
  const query = new URLSearchParams({ k: find("k").value });
  if (chosen.length < boxes.length) chosen.forEach((box) => query.append("camera", box.value));
  if (boxes.length && !chosen.length) {
    complain("No camera is chosen.");
    find("result").hidden = true;
    return;
  }
  find("result").classList.add("busy");
  let problem = "";
  try {
    const response = await fetch(`/search?${query}`, { method: "POST", body: file });
    const answer = await response.json();
    if (own !== newest) return;
    if (response.ok) show(answer);
    else problem = answer.error;
  } catch {
    if (own !== newest) return;
    problem = "The server does not answer, or stopped reading a file that is too large.";
  }
  complain(problem);
  find("result").hidden = Boolean(problem);
  find("result").classList.remove("busy");
}

function take(files) {
  if (files.length) {
    file = files[0];
    search();
  }
}

find("file").addEventListener("change", (event) => take(event.target.files));
find("form").addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("#k, input[name=camera]").forEach((box) => box.addEventListener("change", search));
const drop = find("drop");
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
