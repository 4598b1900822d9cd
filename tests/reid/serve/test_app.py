"""The web application, through Starlette's test client."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from rga_fast import reid
from rga_fast.reid.serve.app import make_app
from rga_fast.reid.serve.searcher import Searcher
from rga_fast.reid.serve.upload import Limits

testclient = pytest.importorskip("starlette.testclient", reason="needs the extra web and httpx")


def make_client(index, **options):
    app = make_app(Searcher(index, device="cpu"), **options)
    return testclient.TestClient(app, base_url="http://localhost")


@pytest.fixture(scope="module")
def client(served):
    return make_client(served, limits=Limits(nbytes=100_000, pixels=10_000))


def encoded(size, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_the_page_names_the_gallery(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "<h1>people</h1>" in page.text
    assert "13 images of 4 cameras" in page.text
    assert "up to distance 0.500" in page.text
    for name in ("page.js", "page.css"):
        assert f"/static/{name}" in page.text
        assert client.get(f"/static/{name}").text
    assert client.get("/static/app.py").status_code == 404


def test_a_search_answers_with_matches_attention_and_a_verdict(client, photo):
    answer = client.post("/search?k=5", content=photo).json()
    assert len(answer["matches"]) == 5
    first = answer["matches"][0]
    assert first["path"] == "0020_c1s1_000017_00.jpg"
    assert (first["identity"], first["camera"], first["same"]) == ("0020", "1", True)
    distances = [match["distance"] for match in answer["matches"]]
    assert distances == sorted(distances)
    assert answer["verdict"].startswith("In the gallery: the nearest image is at 0.")
    assert [one["name"][:18] for one in answer["attention"]] == [
        f"attention, stage {stage}" for stage in (1, 2, 3, 4)
    ]
    for source in (answer["query"], answer["attention"][0]["image"]):
        assert source.startswith("data:image/png;base64,")
    picture = client.get(first["image"])
    assert Image.open(io.BytesIO(picture.content)).size == (128, 256)


def test_cameras_filter(client, photo):
    answer = client.post("/search?camera=2&camera=3&k=50", content=photo).json()
    assert {match["camera"] for match in answer["matches"]} == {"2", "3"}
    assert len(answer["matches"]) == 8


@pytest.mark.parametrize(
    ("query", "body", "status", "sentence"),
    [
        ("", b"", 400, "No file was sent."),
        ("", b"%PDF-1.7 not an image", 415, "not an image of a type that is read here: JPEG, PNG"),
        ("", encoded((8, 4), "GIF"), 415, "not an image of a type"),
        ("", b"x" * 100_001, 413, "larger than 0.1 MB"),
        ("", encoded((101, 100)), 413, "more than 0.01 million pixels"),
        ("?k=0", encoded((8, 4)), 400, "from 1 to 100, got 0"),
        ("?k=many", encoded((8, 4)), 400, "a number, got 'many'"),
        ("?camera=9", encoded((8, 4)), 400, "No image is of camera 9."),
    ],
)
def test_a_bad_upload_is_told_why(client, query, body, status, sentence):
    answer = client.post(f"/search{query}", content=body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


def test_a_damaged_image_is_named_as_such(client, photo):
    answer = client.post("/search", content=photo[:-200])
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("The image is damaged")


def test_a_body_is_not_read_beyond_the_limit(client):
    taken = []

    def chunks():
        for _ in range(100):
            taken.append(1)
            yield b"x" * 10_000

    assert client.post("/search", content=chunks()).status_code == 413
    declared = {"content-length": "999999999"}
    assert client.post("/search", content=b"x", headers=declared).status_code == 413


def test_no_file_outside_the_gallery_and_no_path_of_the_server(client, served, photo):
    listed = "0030_c4s1_000001_00.png"
    answer = client.post("/search?camera=4", content=photo)
    assert [match["path"] for match in answer.json()["matches"]] == [listed]
    for path in (
        listed,  # a link out of the gallery
        "secret.png",
        "../secret.png",
        "..%2Fsecret.png",
        "%2Fetc%2Fpasswd",
        "//etc/passwd",
        str(served / "manifest.json"),
    ):
        assert client.get(f"/images/{path}").status_code == 404, path
    pages = [client.get("/"), answer, client.post("/search", content=b"x"), client.get("/none")]
    for page in pages:
        assert str(served.parent) not in page.text
        assert "Traceback" not in page.text


def test_a_failure_says_nothing_of_the_server(client, photo, monkeypatch):
    def fail(*_):
        raise ValueError("/home/somebody/secret")

    monkeypatch.setattr(reid.Index, "search", fail)
    answer = client.post("/search", content=photo)
    assert answer.status_code == 500
    assert answer.json() == {"error": "The search failed; the server's log says why."}


def test_other_hosts_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_ten_clients_at_once_get_what_one_gets(client, photo):
    one = client.post("/search", content=photo).json()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post("/search", content=photo).json(), range(10)))
    assert all(json.dumps(answer) == json.dumps(one) for answer in answers)


def test_a_replaced_index_is_seen_by_the_next_search(served, photo, tmp_path):
    shutil.copytree(served.parent, tmp_path / "all", symlinks=True)
    index = tmp_path / "all" / "people.index"
    client = make_client(index)
    path = client.post("/search?k=1", content=photo).json()["matches"][0]["path"]
    reid.remove_images(index, [path])
    assert client.post("/search?k=1", content=photo).json()["matches"][0]["path"] != path
    assert client.get(f"/images/{path}").status_code == 404
