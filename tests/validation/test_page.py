"""The report for people: what it says follows from the files, nothing gets into it that isn't text, a browser shows it."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.typed import plain, read_as
from saeuron.validation.evidence.intervals import Rate
from saeuron.validation.page.content import make_content
from saeuron.validation.page.curve import make_curve
from saeuron.validation.page.figures import interval, percent, share
from saeuron.validation.page.render import markdown_text, render
from saeuron.validation.proof.results import Backend


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
    return make_content(root, [made_up.evaluation(tmp_path / "e", root)], made_up.attack(tmp_path / "attack.json", root))


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


@pytest.mark.parametrize(
    ("hits", "said"),
    [
        ({"prefix": 1, "embedding": 6, "edited": 5}, "the strongest attack tried (embedding) brought Neon back in 6 of 24 trials"),
        ({"prefix": 1, "embedding": 6, "edited": 8}, "plain prompts alone, without an attack, brought Neon back in 8 of 24 trials"),
        ({"prefix": 6, "edited": 6}, "the strongest attack tried (prefix) brought Neon back in 6 of 24 trials"),
        ({}, "no attack tried (prefix, embedding) brought Neon back: at the fewest trials 0 of 24 (0 %, 95 % interval 0 to 13.8 %)."),
        ({"unedited": 9}, "13.8 %), which says little of Neon: the judge sees it in few of the unedited model's pictures."),
    ],
)  # fmt: skip
def test_the_verdict_takes_the_worst_even_where_nothing_attacks(tmp_path, hits, said):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report())
    names = ("unedited", "edited", "prefix", "embedding")
    rows = [made_up.attack_row(name, hits.get(name, 24 if name == "unedited" else 0)) for name in names]
    path = made_up.attack(tmp_path / "attack.json", root, concepts={"Neon": {"domain": "style", "rows": rows, "pictures": []}})
    assert said in make_content(root, attack=path)["verdict"]["text"]


def test_paraphrases_that_show_nothing_before_the_edit_prove_nothing(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report())
    path = made_up.attack(tmp_path / "attack.json", root)
    content = json.loads(path.read_text())
    rows = content["concepts"]["Neon"]["rows"]
    plain = [row for row in rows if row["attack"] in ("unedited", "edited")]

    def said(hits):
        asked = [made_up.attack_row("unedited-paraphrases", hits, 4), made_up.attack_row("paraphrases", 0, 4)]
        content["concepts"]["Neon"]["rows"] = [*plain, *asked]
        path.write_text(json.dumps(content))
        return make_content(root, attack=path)

    assert "no attack tried (paraphrases) brought Neon back" in said(4)["verdict"]["text"] and "prove nothing" not in open_points(said(4))
    assert "no attack tried" not in said(0)["verdict"]["text"] and "No paraphrase of Neon shows it" in open_points(said(0))


def test_what_is_missing_is_said(tmp_path):
    content = make_content(made_up.artifact(tmp_path / "bare"))
    assert content["verdict"]["state"] == "open" and content["parity"] == [] and content["pictures"] is None
    points = open_points(content)
    assert "without validation" in points and "No evaluation was given" in points and "No attack was given" in points
    render(content, "p")
    unrun = {"passed": None, "not_checked": "an engine hides its inner tensors", "golden_tokens": None, "own_tokens": None}
    engines = {"rtx": {
        "backend": "trt-rtx", "module": "l", "version": "1", "sms": ["sm86"], "precision": "fp32", "options": {}, "components": {}, "status": "built, not yet run",
    }}  # fmt: skip
    proof = made_up.report(scope="short", onnx=made_up.backend(seam=unrun, runs=False))
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
    assert (
        make_curve(
            read_as(dict[str, Backend], {"onnx": made_up.backend(forwards={"passed": True, "rows": []})}, "made up", strict=False), share
        )
        is None
    )


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
    assert interval(Rate.of(0, 0)) == "–" and interval(Rate.of(2, 4)) == "15 to 85 %"


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


def test_a_proof_of_engines_that_were_built_anew_is_refused(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    engine = root / "tensorrt" / "rtx-sm86" / "vae_decoder.engine"
    engine.parent.mkdir(parents=True)
    for content in (b"first", b"second"):
        engine.write_bytes(content)
        made_up.rewrite(root)
        if content == b"first":
            path = made_up.another_proof(tmp_path / "device.json", root, backends={"trt-rtx/rtx-sm86": made_up.backend()})
            assert "trt-rtx/rtx-sm86 differs" in make_content(root, proof=path)["verdict"]["text"]
    with pytest.raises(SaeuronError, match="other engines 'rtx-sm86'"):
        make_content(root, proof=path)


def test_files_of_others_are_refused(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    evaluation, attack = made_up.evaluation(tmp_path / "e", root), made_up.attack(tmp_path / "attack.json", root)
    content = json.loads(attack.read_text())

    def refused(message: str, **changes) -> None:
        attack.write_text(json.dumps({**content, **changes}))
        with pytest.raises(SaeuronError, match=message):
            make_content(root, [evaluation], attack)

    refused("another artifact", edit_sha256="f" * 64)
    refused("'judge'", judge="demo")
    refused("format", format="x")
    refused(r"'concepts.\*' must be object", concepts={"Neon": 3})
    row, plain = made_up.attack_row("seeds", 8, 8), [made_up.attack_row("unedited", 8, 8), made_up.attack_row("edited", 0, 8)]

    def of(**changes: Any) -> dict[str, Any]:
        return {"Neon": {"domain": "style", "rows": [*plain, {**row, **changes}]}}

    refused("9 hits of 8 trials", concepts=of(successes=9))
    refused("8 of 8 has the low 0.67", concepts=of(low=1.0))
    refused("8 of 8 has the rate 1.0, not 0.1", concepts=of(rate=0.1))
    refused("successes of seeds on Neon is 8, but its pictures give 7", concepts=of(each=made_up.attack_row("seeds", 7, 8)["each"]))
    one_each = "doesn't list one picture for each of its prompts and seeds"
    refused(one_each, concepts=of(each=[{**one, "prompt": "p"} for one in row["each"]]))
    refused(one_each, concepts=of(each=[*row["each"], row["each"][0]]))
    refused(one_each, concepts=of(**made_up.attack_row("seeds", 0, 4) | {"prompts": row["prompts"]}))
    refused(one_each, concepts=of(budget={"pictures": 1000}))
    refused("is no count", concepts=of(budget={"pictures": 8, "forwards": -1}))
    refused(r"'concepts.\*.rows.2..trials' must be", concepts=of(trials=10**400))
    # A row under another name, or beside other prompts, would say something else.
    refused("and each attack once", concepts=of(attack="Seeds"))
    refused("and each attack once", concepts=of(attack="unedited"))
    refused("need a row of the unedited model", concepts=of(attack="paraphrases"))
    refused("has other prompts than unedited", concepts=of(**made_up.attack_row("prefix", 1, 4)))
    refused("each' is missing", concepts={"Neon": {"domain": "style", "rows": [{k: v for k, v in row.items() if k != "each"}]}})  # fmt: skip
    older = {key: value for key, value in content.items() if key != "content_sha256"}
    for said, foreign in (
        (content, False), (older, False), ({**content, "content_sha256": "0" * 64}, True), ({**older, "manifest_sha256": "0" * 64}, True),
    ):  # fmt: skip
        attack.write_text(json.dumps(said))
        assert ("another export" in open_points(make_content(root, [evaluation], attack))) is foreign
    with pytest.raises(SaeuronError, match="does not exist"):
        make_content(root, [tmp_path / "nowhere"])
    golden = root / "edit" / "golden.safetensors"
    golden.write_bytes((root / "edit" / "edit.safetensors").read_bytes())
    with pytest.raises(SaeuronError, match="no golden vectors"):
        make_content(root)
    golden.unlink()
    (root / "validation" / "report.json").write_text('{"scope": "full"}')
    with pytest.raises(SaeuronError, match="is missing"):
        make_content(root)


def changed(folder: Path, **changes) -> Path:
    """Another evaluation.json; `settings` are added to."""
    path = folder / "evaluation.json"
    found = json.loads(path.read_text())
    found["settings"] |= changes.pop("settings", {})
    path.write_text(json.dumps(found | changes))
    return folder


def nude(hits: int) -> dict:
    return {"nude": plain(Rate.of(hits, 4)), "detections": {"BUTTOCKS_EXPOSED": hits} if hits else {}}


def test_nudity_rates(tmp_path):
    root = made_up.artifact(tmp_path / "a", "nudity", made_up.report())
    judge = {"protocol": "nudity", "judges": [{"name": "nudenet 3", "sha256": "0" * 64}]}
    folder = changed(
        made_up.evaluation(tmp_path / "e", root), settings=judge, threshold=0.75, backends={"unedited": nude(4), "onnx": nude(1)}
    )
    content = make_content(root, [folder])
    assert "finds nudity in 1 of 4" in content["verdict"]["text"] and "4 of 4 before the edit" in content["verdict"]["text"]
    pages = render(content, "p")
    for text in (pages.html, pages.markdown.replace("\\", "")):
        assert "BUTTOCKS_EXPOSED 4" in text and "detections of score 0.75 or more" in text
    assert "With nudity" in pages.html and "not what else went with it" in open_points(content)
    changed(folder, backends={"unedited": nude(0), "onnx": nude(0)})
    assert "nothing in the unedited model's pictures either" in open_points(make_content(root, [folder]))
    neon = made_up.artifact(tmp_path / "neon", "Neon", made_up.report())
    folder = changed(made_up.evaluation(tmp_path / "f", neon), settings=judge, threshold=0.6, backends={"onnx": nude(0)})
    assert "not Neon, nor what else" in open_points(make_content(neon, [folder]))


def score(mean: float, half: float = 0.5) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": 30}


def test_utility_stands_beside_the_rates(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report())
    rates, utility = made_up.evaluation(tmp_path / "e", root), made_up.evaluation(tmp_path / "u", root)
    changed(
        utility, settings={"protocol": "utility", "judges": [{"name": "CLIP small", "sha256": "0" * 64}]},
        backends={"unedited": {"clip_score": score(25.5)}, "onnx": {"clip_score": score(25.25), "clip_change": score(-0.25, 0.125), "prompts_cut": 2}},
    )  # fmt: skip
    content = make_content(root, [rates, utility])
    text, points = content["verdict"]["text"], open_points(content)
    assert "CLIP score changes by -0.25 on average (95 % interval -0.38 to -0.12; 30 pictures; onnx)" in text and "38 of 40" in text
    assert "2 prompts of utility were longer" in points and "No FID was taken (utility)" in points and "alone was measured" not in points
    pages = render(content, "p")
    for page in (pages.html, pages.markdown):
        assert "Utility: how well pictures fit prompts" in page and "-0.38 to -0.12" in page and "25.50" in page
    alone = make_content(root, [utility])
    assert "was not measured here" in alone["verdict"]["text"] and "Utility alone was measured" in open_points(alone)
    with pytest.raises(SaeuronError, match="second evaluation by the protocol 'utility'"):
        make_content(root, [utility, rates, utility])
    changed(utility, settings={"judges": []}, backends={"onnx": {}})
    assert "No CLIP score was taken" in open_points(make_content(root, [utility]))


def test_stages_show_what_they_keep(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report(), concepts=["Neon", "House"])
    folder = made_up.evaluation(tmp_path / "e", root)
    part = json.loads((folder / "evaluation.json").read_text())["backends"]["onnx"]
    neon = {"concepts": {"Neon": part["concepts"]["Neon"]}}
    rate = plain(Rate.of(3, 4))
    one = {**part, **neon, "kept": {"House": rate}, "retained": {"style": rate, "object": rate}, "shared_table_entries": 7}
    whole = {**one, "concepts": part["concepts"], "kept": {}, "shared_table_entries": 0}
    content = make_content(root, [changed(folder, backends={"hook[Neon]": one, "hook[Neon+House]": whole})])
    # A stage of all concepts is the whole edit: it counts, the other doesn't.
    assert "38 of 40" in content["verdict"]["text"] and "hook[Neon+House]" in content["verdict"]["text"]
    assert "No picture that asks for Neon" not in open_points(content)
    pages = render(content, "p")
    for page in (pages.html.replace("\u00a0", " "), pages.markdown):
        assert "House 75 % (3 of 4)" in page and "hook[Neon]" in page.replace("\\", "") and "Shared entries".lower() in page.lower()


def test_settings_other_than_the_proofs_and_a_judge_that_sees_little_are_said(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report())
    folder = made_up.evaluation(tmp_path / "e", root)
    assert "unedited model's own pictures" not in open_points(make_content(root, [folder]))
    assert "0 of 40 before the edit" in make_content(root, [folder])["verdict"]["text"]
    parts = json.loads((folder / "evaluation.json").read_text())["backends"]
    parts["unedited"]["concepts"]["Neon"]["ua"] = plain(Rate.of(20, 40))
    points = open_points(make_content(root, [changed(folder, settings={"steps": 1}, backends=parts)]))
    assert "misses Neon in 20 of 40" in points and "took 1 step at guidance 3; the proof's took 4 at 3" in points


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


def page_of(tmp_path: Path, name: str, **changes) -> Path:
    """A report with everything in it."""
    root = made_up.artifact(tmp_path / "a", name, **changes)
    content = make_content(
        root, [made_up.evaluation(tmp_path / "e", root)], made_up.attack(tmp_path / "x.json", root), made_up.another_proof(tmp_path / "device.json", root),
        made_up.features(tmp_path / "f", root, name=name),
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(render(content, "p").html)
    return path


OVERFLOW = """(() => {
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  const inner = document.documentElement.clientWidth;
  return [document.documentElement.scrollWidth - inner, innerWidth];
})()"""
# Text against what lies behind it, by WCAG 2.1's formula; 4.5 is what it asks of small text.
CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const found = {};
  for (const element of document.querySelectorAll("h1,h2,h3,p,td,th,dt,dd,small,figcaption,summary,nav a,.mark,.state,.card,.failures li,.warnings li,.empty")) {
    if (!element.textContent.trim()) continue;
    let behind = element;
    while (behind && (parts(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind || document.body).backgroundColor].map((c) => light(parts(c)));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found[element.tagName + "." + element.className] = ratio;
  }
  return found;
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_in_a_browser(tmp_path):
    proof = made_up.report(onnx=made_up.backend(), checkpoint=made_up.backend("inf", passed=False), passed=False, failures=("f" * 200,))
    page = page_of(tmp_path, "Neon" + "n" * 90 + made_up.HOSTILE, proof=proof)
    with Browser() as browser:
        for width in (360, 800, 1400):
            for dark in (False, True):
                browser.open(page, width, dark=dark)
                beyond, inner = browser.ask(OVERFLOW)
                assert inner == width and beyond <= 0, (width, dark)
                assert browser.ask(CONTRAST) == {}, (width, dark)
        browser.ask("document.getElementById('theme').click()")
        assert browser.ask("document.documentElement.dataset.theme") == "light" and browser.ask(CONTRAST) == {}
        for link in browser.ask("[...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))"):
            assert browser.ask(f"document.querySelector({json.dumps(link)}) !== null"), link
        assert browser.messages == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_by_the_keyboard(tmp_path):
    page = page_of(tmp_path, "Neon", proof=made_up.report())
    opened, where = "document.getElementById('large').open", "document.getElementById('large-place').textContent"
    focused = "[...document.querySelectorAll('.thumb')].indexOf(document.activeElement)"
    with Browser() as browser:
        browser.open(page)
        for _ in range(60):
            browser.press("Tab")
            if browser.ask(focused) == 0:
                break
        assert browser.ask(focused) == 0 and not browser.ask(opened)
        browser.press("Enter")
        # Before and after, and two pictures with maps of each of two features.
        assert browser.ask(opened) and browser.ask(where) == "1 of 10"
        browser.press("ArrowRight", "ArrowRight")
        assert browser.ask(where) == "3 of 10" and "feature 3" in browser.ask("document.getElementById('large-caption').textContent")
        browser.press("Escape")
        assert not browser.ask(opened) and browser.becomes(focused, 2)
        browser.press("Tab", " ")
        assert browser.ask(opened) and browser.ask(where) == "4 of 10"
        browser.press("ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft")
        assert browser.ask(where) == "10 of 10"
        browser.press("Escape")
        assert browser.becomes(focused, 9)
        browser.ask("document.querySelector('.thumb').click()")
        assert browser.ask(opened) and browser.messages == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_blurred_until_asked_for(tmp_path):
    page = page_of(tmp_path, "nudity", proof=made_up.report())
    sharp = "[...document.querySelectorAll('.thumb img')].filter((i) => getComputedStyle(i).filter === 'none').length"
    large = "getComputedStyle(document.getElementById('large-picture')).filter"
    with Browser() as browser:
        browser.open(page)
        assert browser.ask(sharp) == 0
        browser.ask("document.querySelector('.thumb').focus()")
        browser.press("Enter")
        assert not browser.ask("document.getElementById('large').open")
        browser.press("Enter")
        assert browser.ask(large) == "none"
        browser.press("ArrowRight")
        assert browser.ask(large) != "none" and not browser.ask("document.getElementById('unblur').hidden")
        browser.ask("document.getElementById('unblur').focus()")
        browser.press("Enter")
        assert browser.ask(large) == "none" and browser.ask("document.getElementById('unblur').hidden")
        browser.press("Escape")
        assert browser.ask("document.querySelectorAll('.thumb.blurred').length") == 8 and browser.messages == []


def test_features(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    assert "No pictures of single features" in open_points(make_content(root))
    content = make_content(root, features=made_up.features(tmp_path / "f", root, (3, 100, 7)))
    first, silent = content["features"]["rows"]
    assert (first["feature"], first["share"], first["most"], first["most_at"], first["concepts"]) == (3, "37.5 %", "50 %", "999", "Neon")
    strongest, second = first["top"]
    picture, drawn = strongest["picture"], strongest["map"]
    assert np.all(picture == 90) and drawn.shape == (16, 24, 3)
    # The first of 2 x 3 tokens has the largest mean, so it is drawn in the brightest colour; the others are grey.
    assert drawn[0, 0, 0] > 200 and len(set(drawn[15, 23].tolist())) == 1 and second["map"][15, 23].tolist() != second["map"][0, 0].tolist()
    # Half the activation at one of two timesteps is a quarter of the scale.
    assert second["map"][15, 23].max() < drawn[0, 0].max()
    assert (
        silent["top"] == []
        and "1 feature of the edit is not among" in open_points(content)
        and "none of the pictures made: 7" in open_points(content)
    )
    pages = render(content, "p")
    assert "p/feature-1-2-map.png" in pages.markdown and "feature-1-2-map.png" in pages.pictures and "feature 100" not in pages.html
    others = make_content(root, features=made_up.features(tmp_path / "g", root, model="x/y"))
    assert "made with 'x/y', the artifact is of 'demo'" in open_points(others)


def test_features_of_others_are_refused(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())

    def refused(message: str, change=lambda folder: None, numbers=(3, 7), **changes) -> None:
        folder = made_up.features(tmp_path / message[:9].replace("/", "-"), root, numbers, **changes)
        change(folder)
        with pytest.raises(SaeuronError, match=message):
            make_content(root, features=folder)

    refused("of another SAE", saes={made_up.POINT: "f" * 64})
    refused("shows no feature that this edit changes", numbers=(100, 200))
    refused("is of format", format="saeuron-evaluation-1")
    refused("no maps", lambda f: made_up.save_file({"x": np.zeros(1, np.float32)}, f / "maps.safetensors"))
    refused(
        "other things",
        lambda f: made_up.save_file({f"{made_up.POINT}/3": np.full((2, 2, 2, 3), np.nan, np.float32)}, f / "maps.safetensors"),
    )
    refused("does not exist", lambda f: (f / "maps.safetensors").unlink())
    refused("is no picture", lambda f: (f / "pictures" / "1.png").write_bytes(b"GIF89a"))

    def elsewhere(folder: Path) -> None:
        path = folder / "features.json"
        path.write_text(path.read_text().replace("pictures/1.png", "../secret.png"))

    refused("they lie in pictures", elsewhere)


def test_another_proof(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    path = made_up.another_proof(tmp_path / "device.json", root)
    content = make_content(root, proof=path)
    assert content["verdict"]["state"] == "proven" and "in another proof, onnx differs" in content["verdict"]["text"]
    assert "0.005 %" in content["verdict"]["text"] and [part["name"] for part in content["parity"]] == ["", "device.json"]
    assert "Another proof: device.json" in render(content, "p").html and "Another proof: device.json" in render(content, "p").markdown
    # One that fails is not hidden behind one that passed.
    failed = made_up.report(passed=False, failures=("far off",))
    content = make_content(root, proof=made_up.another_proof(path, root, **{k: failed[k] for k in ("passed", "failures")}))
    assert content["verdict"]["state"] == "failed" and content["failures"] == ["device.json: far off"]
    bare = made_up.artifact(tmp_path / "bare")
    content = make_content(bare, proof=made_up.another_proof(tmp_path / "b.json", bare))
    assert content["verdict"]["word"] == "not proven at export" and not content["own_proof"] and len(content["parity"]) == 1
    of = json.loads(path.read_text())["artifact"]
    for message, changes in (
        ("another artifact", {"artifact": {**of, "edit_sha256": "f" * 64}}), ("another export of the same edit", {"artifact": {**of, "content_sha256": "f" * 64}}),
        ("of other engines 'rtx-sm86'", {"backends": {"trt-rtx/rtx-sm86": made_up.backend()}}), ("backends.\\*.seam. is missing", {"backends": {"onnx": {}}}), ("'passed'", {"passed": 3}),
    ):  # fmt: skip
        made_up.another_proof(path, root, **changes)
        with pytest.raises(SaeuronError, match=message):
            make_content(root, proof=path)
    path.write_text(json.dumps(made_up.report()))
    with pytest.raises(SaeuronError, match="doesn't say of which artifact"):
        make_content(root, proof=path)


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


def test_an_attack_on_what_the_artifact_does_not_remove_is_refused(tmp_path):
    root = made_up.artifact(tmp_path / "a", "Neon", made_up.report())
    path = made_up.attack(tmp_path / "attack.json", root)
    content = json.loads(path.read_text())
    content["concepts"]["Sepia"] = content["concepts"]["Neon"]
    path.write_text(json.dumps(content))
    with pytest.raises(SaeuronError, match="is of Sepia, which this artifact doesn't remove"):
        make_content(root, attack=path)
