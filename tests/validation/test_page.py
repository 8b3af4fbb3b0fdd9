"""The report for people: what it says follows from the files, nothing gets into it that isn't text, a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import made_up
import numpy as np
import pytest

from saeuron.editor.errors import SaeuronError
from saeuron.validation.page.content import make_content
from saeuron.validation.page.curve import make_curve
from saeuron.validation.page.figures import interval, percent, share
from saeuron.validation.page.render import markdown_text, render
from saeuron.validation.page.sources import Rate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tags(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def whole(tmp_path: Path, name: str = "Neon", **changes):
    root = made_up.artifact(tmp_path / "a", name, made_up.report(), **changes)
    return make_content(root, made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "attack.json", root))


def open_points(content) -> str:
    return "\n".join(f"{e['about']}: {e['text']}" for e in content["not_checked"])


def test_the_verdict_says_the_numbers(tmp_path):
    content = whole(tmp_path)
    text = content["verdict"]["text"]
    assert content["verdict"]["state"] == "proven" and text.count(".") - len(re.findall(r"\d\.\d", text)) == 1
    for part in ("0.0002 %", "4 forwards", "38 of 40", "95 %", "no less than 93.8 %", "embedding", "6 of 24", "Neon removed from demo"):
        assert part in text
    points = open_points(content)
    assert "1 of 3 features never fired" in points and "paraphrases" in points and "through the hook" in points
    assert "No evaluation" not in points and "CRA unstyled of Neon by onnx: no picture" in points
    pages = render(content, "report-pictures")
    assert [row["count"] for row in content["removed"]["rows"]] == [3] and "3, 7, 9" in pages.html
    assert set(pages.pictures) == {"1-before.png", "1-after.png"} and "![before](report-pictures/1-before.png)" in pages.markdown
    for page in (pages.html, pages.markdown):
        titles = re.findall(r"^(?:<h2>|## )(.*?)(?:</h2>)?$", page, re.MULTILINE)
        assert titles == [
            "What was removed", "Before and after", "What the features answer to", "Parity with the dynamic hook", "Is it gone, is the rest kept?", "Under attack", "Settings",
            "What was not checked",
        ]  # fmt: skip
        assert "dynamic hook, not from the artifact" in page and "91.3" in page.replace("\u00a0", " ") and "–" in page


def test_what_is_missing_is_said(tmp_path):
    content = make_content(made_up.artifact(tmp_path / "bare"))
    assert content["verdict"]["state"] == "open" and content["parity"] == [] and content["pictures"] is None
    points = open_points(content)
    assert "without validation" in points and "No evaluation was given" in points and "No attack was given" in points
    render(content, "p")
    unrun = {"passed": None, "not_checked": "an engine hides its inner tensors", "observable": False}
    engines = {"rtx": {
        "backend": "trt-rtx", "library": "l", "version": "1", "sms": ["sm86"], "precision": "fp32", "options": {}, "components": {}, "status": "built, not yet run",
    }}  # fmt: skip
    proof = made_up.report(scope="short", onnx=made_up.backend(gates=unrun, runs=False))
    proof["not_checked"] = [{"check": "record", "reason": "torch is missing"}]
    content = make_content(
        made_up.artifact(tmp_path / "short", proof=proof, pictures=False, engines=engines, settings=[
            {"name": "Neon", "hookpoint": made_up.POINT, "select": "count:2", "multiplier": None, "status": "untuned"}
        ])
    )  # fmt: skip
    points = open_points(content)
    for said in ("scope is 'short'", "hides its inner tensors", "torch is missing", "built, not yet run", "untuned"):
        assert said in points
    assert "not checked: an engine hides" in render(content, "p").markdown
    content = make_content(made_up.artifact(tmp_path / "noisy", proof=made_up.report(onnx=made_up.backend(conclusive=False))))
    assert "was not judged" in open_points(content)


def test_a_failed_proof_and_infinities(tmp_path):
    proof = made_up.report(
        passed=False, failures=("onnx: <b>far</b> off",), onnx=made_up.backend("inf", passed=False), checkpoint=made_up.backend(1e-5)
    )
    content = make_content(made_up.artifact(tmp_path / "a", proof=proof))
    assert content["verdict"]["state"] == "failed" and "infinite" in content["verdict"]["text"] and "1 point" in content["verdict"]["text"]
    html = render(content, "p").html
    assert "&lt;b&gt;far&lt;/b&gt;" in html and 'class="beyond"' in html
    curve = content["parity"][0]["curve"]
    assert [line.name for line in curve.lines] == ["onnx", "checkpoint"] and "624" not in curve.lines[0].path
    # Denoising goes to the right, and a larger ratio stands higher.
    xs = [float(pair.split(",")[0]) for pair in curve.lines[1].path.split()]
    assert xs == sorted(xs) and curve.bar < min(p.y for p in curve.lines[1].points)
    assert make_curve({"onnx": made_up.backend(forwards={"rows": []})}, share) is None


def test_numbers():
    assert share(0.01) == "1 %" and share("inf") == "infinite" and share("nan") == "no number" and share(0) == "0 %"
    assert (
        share(1.034) == "103 %"
        and share(5.9e-7) == "0.000059 %"
        and share(1e-9) == "1.0e-07 %"
        and share(2.0) == "200 %"
        and share(0.1) == "10 %"
    )
    assert percent(None) == "–" and percent(1.0) == "100 %" and interval(None) == "–"
    assert percent(0.99999) == "> 99.9 %" and percent(1e-5) == "< 0.1 %" and percent(0.0) == "0 %"
    assert interval(Rate(None, None, None, 0, 0)) == "–" and interval(Rate(0.5, 0.25, 0.75, 2, 4)) == "25 to 75 %"


def test_hostile_names_stay_text(tmp_path):
    content = whole(tmp_path, made_up.HOSTILE)
    pages = render(content, "p")
    plain = render(whole(tmp_path / "plain"), "p")
    ours, theirs = (Tags(page.html).found for page in (pages, plain))
    assert [tag for tag, _ in ours] == [tag for tag, _ in theirs] and [set(a) for _, a in ours] == [set(a) for _, a in theirs]
    assert not [a for _, attributes in ours for a in attributes if a.startswith("on") or a == "style"]
    loaded = [v for _, a in ours for k, v in a.items() if k in ("src", "href")]
    assert loaded and all(v.startswith(("#", "data:")) for v in loaded)
    policy = next(a["content"] for t, a in ours if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for line in pages.markdown.splitlines():
        assert "<" not in line and '**"' not in line
    rows = [len(re.findall(r"(?<!\\)\|", line)) for line in pages.markdown.splitlines()]
    assert rows == [len(re.findall(r"(?<!\\)\|", line)) for line in plain.markdown.splitlines()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x](http://e.org)", r"\[x\](http:\//e.org)"), ("a|b\nc", r"a\|b c"), ("# x", r"\# x"), ("-0.3", "-0.3"), ("- x", r"\- x"), ("1. x", r"1\. x"),
        ("up_blocks.1", "up_blocks.1"), ("_x_", r"\_x\_"), ("<b>&", "&lt;b&gt;&amp;"), ("---", r"\---"), ("__x__", r"\_\_x\_\_"),
    ],
)  # fmt: skip
def test_markdown_text(text, shown):
    assert str(markdown_text(text)) == shown


def test_nudity_is_blurred(tmp_path):
    html = render(whole(tmp_path, "nudity"), "p")
    assert 'class="thumb blurred"' in html.html and "Blurred until clicked" in html.html
    assert "![" not in html.markdown and "[before](p/1-before.png)" in html.markdown
    assert "blurred" not in re.sub(r"<(style|script)>.*?</\1>", "", render(whole(tmp_path / "n"), "p").html, flags=re.DOTALL)


def test_files_of_others_are_refused(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    evaluation, attack = made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "attack.json", root)
    content = json.loads(attack.read_text())

    def refused(message: str, **changes) -> None:
        attack.write_text(json.dumps({**content, **changes}))
        with pytest.raises(SaeuronError, match=message):
            make_content(root, evaluation, attack)

    refused("another artifact", edit_sha256="f" * 64)
    refused("'judge'", judge="demo")
    refused("format", format="x")
    refused("'concepts.Neon' is", concepts={"Neon": 3})
    row = {"attack": "seeds", "successes": 9, "trials": 8, "rate": 1.0, "low": 1.0, "high": 1.0, "budget": {}}
    refused("no count", concepts={"Neon": {"domain": "style", "rows": [row]}})
    refused("between 0 and 1", concepts={"Neon": {"domain": "style", "rows": [{**row, "successes": 8, "high": 7}]}})
    attack.write_text(json.dumps({**content, "manifest_sha256": "0" * 64}))
    assert "another export" in open_points(make_content(root, evaluation, attack))
    with pytest.raises(SaeuronError, match="does not exist"):
        make_content(root, tmp_path / "nowhere")
    golden = root / "edit" / "golden.safetensors"
    golden.write_bytes((root / "edit" / "edit.safetensors").read_bytes())
    with pytest.raises(SaeuronError, match="no golden vectors"):
        make_content(root)
    golden.unlink()
    (root / "validation" / "report.json").write_text('{"scope": "full"}')
    with pytest.raises(SaeuronError, match="its form is not known"):
        make_content(root)


def test_nudity_rates(tmp_path):
    root = made_up.artifact(tmp_path / "a", "nudity", made_up.report())
    folder = made_up.evaluation(tmp_path / "e", root)
    found = json.loads((folder / "evaluation.json").read_text())
    found["settings"] |= {"protocol": "nudity", "judge": {"name": "nudenet", "sha256": "nudenet 3"}}
    nude = {"rate": 0.25, "low": 0.05, "high": 0.7, "hits": 1, "trials": 4}
    found["backends"] = {
        "unedited": {"nude": {**nude, "hits": 4, "rate": 1.0, "high": 1.0}, "detections": {}},
        "onnx": {"nude": nude, "detections": {}},
    }
    (folder / "evaluation.json").write_text(json.dumps(found))
    content = make_content(root, folder)
    assert "finds nudity in 1 of 4" in content["verdict"]["text"] and "With nudity" in render(content, "p").html


def browse(*options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        *options,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


PROBE = """<script>
const says = [], press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
const large = document.getElementById("large"), place = document.getElementById("large-place"), thumbs = document.querySelectorAll(".thumb");
thumbs[0].click(); says.push(large.open);
if (!large.open) { thumbs[0].click(); says.push(large.open); }
says.push(place.textContent); press("ArrowRight"); says.push(place.textContent, large.querySelector(".blurred") !== null);
press("ArrowLeft"); press("ArrowLeft"); says.push(place.textContent); document.getElementById("close").click(); says.push(large.open);
document.getElementById("theme").click(); says.push(document.documentElement.dataset.theme, matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.documentElement.dataset.says = JSON.stringify(says);
</script>"""
WIDTHS = """<!doctype html><iframe></iframe><script>
const frame = document.querySelector("iframe");
addEventListener("load", async () => {
  const found = {};
  for (const width of [360, 800, 1400]) {
    frame.width = width; frame.height = 800;
    await new Promise((done) => { frame.onload = done; frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob("PAGE"), (c) => c.charCodeAt(0))); });
    frame.contentDocument.querySelectorAll("details").forEach((d) => { d.open = true; });
    found[width] = [frame.contentDocument.documentElement.scrollWidth, frame.contentWindow.innerWidth];
  }
  document.documentElement.dataset.says = JSON.stringify(found);
});
</script>"""


def says(path: Path) -> object:
    from html import unescape

    found = re.search(r'data-says="([^"]*)"', browse("--dump-dom", "--window-size=1500,1000", path.as_uri()).stdout)
    assert found, "the page's script did not end"
    return json.loads(unescape(found.group(1)))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_in_a_browser(tmp_path):
    import base64

    proof = made_up.report(onnx=made_up.backend(), checkpoint=made_up.backend("inf", passed=False))
    root = made_up.artifact(tmp_path / "a", "Neon" + "n" * 90 + made_up.HOSTILE, proof)
    html = render(make_content(root, made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "x.json", root)), "p").html
    (tmp_path / "page.html").write_text(html)
    found = browse("--dump-dom", (tmp_path / "page.html").as_uri())
    assert "CONSOLE" not in found.stderr, found.stderr
    assert 'aria-label="Light or dark" title="Light or dark">' in found.stdout  # shown by the script, which the policy lets run
    free = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)
    (tmp_path / "widths.html").write_text(WIDTHS.replace("PAGE", base64.b64encode(free.encode()).decode()))
    widths = says(tmp_path / "widths.html")
    assert isinstance(widths, dict) and len(widths) == 3
    for width, (scroll, inner) in widths.items():
        assert int(width) == inner and scroll <= inner, widths
    (tmp_path / "keys.html").write_text(free.replace("</body>", PROBE + "</body>"))
    assert says(tmp_path / "keys.html") == [True, "1 of 2", "2 of 2", False, "2 of 2", False, "dark", "light"]
    nude = render(whole(tmp_path / "nude", "nudity"), "p").html
    (tmp_path / "nude.html").write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", nude).replace("</body>", PROBE + "</body>")
    )
    # The first click unblurs, the second opens; the next picture is blurred still.
    assert says(tmp_path / "nude.html") == [False, True, "1 of 2", "2 of 2", True, "2 of 2", False, "dark", "light"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_what_is_smuggled_in_does_not_run(tmp_path):
    html = render(whole(tmp_path), "p").html
    (tmp_path / "page.html").write_text(html.replace("</body>", "<script>document.documentElement.dataset.bad='1'</script></body>"))
    found = browse("--dump-dom", (tmp_path / "page.html").as_uri())
    assert 'data-bad="1"' not in found.stdout and "Content Security Policy" in found.stderr


def test_pictures_are_the_golden_ones(tmp_path):
    content = whole(tmp_path)
    (pair,) = content["pictures"]["pairs"]
    assert np.all(pair["before"] == 40) and np.all(pair["after"] == 200) and (pair["width"], pair["height"]) == (24, 16)
