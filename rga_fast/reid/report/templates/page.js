"use strict";
for (const box of document.querySelectorAll(".tablebox")) {
  const body = box.querySelector("tbody");
  const rows = [...body.rows];
  const key = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });

  box.querySelectorAll("th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of box.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((a, b) => (up ? 1 : -1) * compare(key(a, column), key(b, column)));
      body.append(...rows);
    });
  });

  const filter = box.querySelector(".filter input");
  const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
  if (filter)
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !words.every((word) => texts.get(row).includes(word));
        shown += !row.hidden;
      }
      box.querySelector(".count").textContent =
        words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    });
}
for (const choice of document.querySelectorAll(".stages input"))
  choice.addEventListener("change", () => {
    document.body.dataset.stage = choice.value;
    for (const other of document.querySelectorAll(".stages input"))
      other.checked = other.value === choice.value;
  });
