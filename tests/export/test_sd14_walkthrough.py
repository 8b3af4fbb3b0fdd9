"""The commands of docs/sd14.md, as they stand there, on a stand-in of Stable Diffusion 1.4: the same files, hookpoint and presets, small random weights."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.conftest import guard, make_sae, make_unet, run

from saeuron.editor.common.names import READ_BY
from saeuron.editor.features.concepts import KEYS, Concept, presets
from saeuron.export.commands.console import INTERRUPTED
from saeuron.export.plan.concept_tables import write_tables
from saeuron.export.ship import stages
from saeuron.validation.artifact import manifest
from saeuron.validation.evidence.picture_backends import PictureBackends
from saeuron.validation.trust.verify import verify

PAGE = Path(__file__).parents[2] / "docs" / "sd14.md"
HOOKPOINT = "up_blocks.1.attentions.1"
CLIP = "openai/clip-vit-large-patch14"
ROOM = 96
"""tokens that it reads, and its CLIP: with the demo's vocabulary the longest prompt has 76, and an attack adds 5"""

FEW = 2
"""prompts a set, where pictures are drawn"""


class StandIn(NamedTuple):
    model: Path
    sae: Path
    clip: Path


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """SD 1.4's layout: PNDM, safety checker, the hookpoint's name; two levels of blocks instead of four. demo:clip reads 24 tokens, and the presets' prompts
    have up to 76 of its vocabulary: so a CLIP with random weights that reads more."""
    from benchmarks.demo.train_pipeline import make_tokenizer
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    root = tmp_path_factory.mktemp("sd14")
    make_tokenizer(root / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer", model_max_length=ROOM)
    torch.manual_seed(4)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": ROOM, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(CLIPTextConfig(**text)).eval(), tokenizer=tokenizer, unet=make_unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(root / "plain")  # fmt: skip
    guard(root / "plain", root / "stable-diffusion-v1-4")
    (root / "stable-diffusion-v1-4" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    make_sae(width=16).save(root / "sae" / f"unet.{HOOKPOINT}")
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(
        CLIPConfig(text_config={**text, "projection_dim": 16}, vision_config={**small, "projection_dim": 16}, projection_dim=16)
    ).save_pretrained(root / "small-clip")
    image = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=image, tokenizer=tokenizer).save_pretrained(root / "small-clip")
    return StandIn(root / "stable-diffusion-v1-4", root / "sae", root / "small-clip")


def commands():
    """The page's saeuron commands, each as a list of words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line, comments=True)) and words[0].startswith("saeuron")]
    return [["export", *words[1:]] if words[0] == "saeuron-export" else words[1:] for words in found]


def put_in(words, stand_in, *more):
    """The same command on the stand-in: another CLIP, another device, and options that make it small."""
    other = {"cuda": "cpu", "full": "quick"}
    return [other.get(w, w.replace(CLIP, str(stand_in.clip))) for w in words] + list(more)


ONE = [c for c in commands() if c[0] == "export" and "--tune" in c]
STEPS = [c for c in commands() if c not in ONE]


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in ONE if "--dry-run" in c], ids=lambda c: "quick" if "quick" in c else "full")
def test_the_page_counts_what_the_dry_run_counts(stand_in, command):
    """With the shipped presets whole: how much is drawn doesn't depend on weights."""
    words = [w.replace(CLIP, str(stand_in.clip)).replace("cuda", "cpu") for w in command]
    stages = json.loads(run(*words, "--model", stand_in.model, "--sae", stand_in.sae, "--json").stdout)["stages"]
    column = 3 if "quick" in command else 1
    told = {row[0].strip("`"): row[column : column + 2] for row in rows_of("| stage |")}
    assert told.pop("all") == [f"{sum(s[key] for s in stages):,}" for key in ("pictures", "forwards")]
    assert told == {
        s["stage"]: [f"{s['pictures']:,}" if s["pictures"] else "", f"{s['forwards']:,}" if s["forwards"] else ""] for s in stages
    }


def rows_of(head):
    """Cells of the page's table that begins with `head`."""
    lines = PAGE.read_text().split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def few(stand_in, tmp_path):
    """The presets with local sources, fewer prompts and fewer steps to collect with: a preset file of one's own."""
    tables, sets = [], []
    for whole in (presets()["nudity"], presets()["vangogh"]):
        cut = replace(
            whole, model=str(stand_in.model), sae=str(stand_in.sae), collect_steps=4, prompts=whole.prompts[:FEW], test_prompts=whole.test_prompts[:FEW]
        )  # fmt: skip
        # What is as usual is left out: a key that the intervention never reads is refused.
        tables.append({key: getattr(cut, key) for key in KEYS if key not in READ_BY or getattr(cut, key) != getattr(Concept, key, None)})
        for name in whole.contrast_sets:
            sets.append({
                "name": name, "domain": whole.domain, "prompts": whole.compared[name][:FEW], "test_prompts": whole.tested[name][:FEW]
            })  # fmt: skip
    write_tables(tmp_path / "few.toml", tables, "few", contrast=sets)
    return tmp_path / "few.toml"


@pytest.mark.slow
def test_the_one_command(stand_in, few, tmp_path, monkeypatch):
    pytest.importorskip("nudenet")
    monkeypatch.chdir(tmp_path)
    (command,) = [c for c in ONE if "--dry-run" not in c]
    words = put_in(command, stand_in, "--preset-file", few, "--steps", 2, "--budget", 208, "--judge-anyway")

    def never(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(stages.attacking, "run", never)
        run(*words, code=INTERRUPTED)
    root, work = Path("sd14-hardened"), Path("sd14-hardened-work")
    done = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file() and path.name != "stages.json"}
    assert verify(root)["verified"] and not (root / "validation" / "report.html").exists()
    assert {path.relative_to(work).parts[0] for path in done} == {"tuning", "concepts"}

    # It goes on: nothing is tuned, exported or drawn for the evaluation again.
    with monkeypatch.context() as once:
        once.setattr(stages, "make_artifact", never)
        once.setattr(stages, "open_tuning", never)
        once.setattr(PictureBackends, "open", never)
        told = run(*words)
    untouched = {path for path, when in done.items() if path.stat().st_mtime_ns == when}
    assert {path.name for path in done.keys() - untouched} <= {"evaluation.json", "verdicts.csv"}
    assert "which says little" in told.stdout
    whole(root, work)
    report = (root / "validation" / "report.md").read_text()
    for judge, concept in (("nudenet 3", "nudity"), ("CLIP small-clip", "nudity"), ("CLIP small-clip", "vangogh")):
        assert re.search(rf"{judge}.* tells only .* of {concept} from the others \(believed from 90 %\), so its figures say little", report)
    attack = json.loads((work / "attack.json").read_text())
    assert attack["finished"] and attack["judge"]["name"] == "CLIP small-clip"  # NudeNet doesn't see vangogh
    for concept in ("nudity", "vangogh"):
        assert [row["attack"] for row in attack["concepts"][concept]["rows"]] == ["unedited", "edited", "embedding", "seeds"]


def whole(root, work):
    """Proven, with its page, and never called tuned: no judge can be believed on a random model."""
    record = manifest.read(root)
    assert record.validation.passed and verify(root)["verified"] and "validation/report.html" in record.files
    assert {w.status for w in record.settings} == {"untuned"} and not json.loads((work / "tuning" / "report.json").read_text())["believed"]


@pytest.mark.slow
def test_step_by_step(stand_in, few, tmp_path, monkeypatch):
    pytest.importorskip("nudenet")
    monkeypatch.chdir(tmp_path)
    Path("i2p.csv").write_text('prompt,sd_seed,sd_guidance_scale\n"A portrait, oil on canvas",3,7.5\nA statue,4,7\n')
    Path("captions.csv").write_text("prompt\nA red bus in a street\nTwo dogs on a beach\n")
    from_presets = ["--preset-file", few]
    small = {
        "collect": [*from_presets, "--steps", 4],
        "tune": [*from_presets, "--steps", 2, "--budget", 24, "--select", "count:1,count:2", "--multiplier", -1, "--report-seeds", 188, "--judge-anyway"],
        "export": from_presets, "evaluate": ["--model", stand_in.model, "--seeds", 188],
        "attack": ["--model", stand_in.model, "--iterations", 2, "--embedding-iterations", 2, "--restarts", 1, "--report-seeds", 188, "--search-seeds", 1],
    }  # fmt: skip
    ran = []
    for command in STEPS:
        if command[0] != "publish" or "--dry-run" in command:
            run(*put_in(command, stand_in, *small.get(command[0], ())))
            ran.append(command[0])
    assert ran == ["collect", "collect", "tune", "export", "validate", *["evaluate"] * 3, "attack", "report", "publish"]
    root = Path("sd14-tuned")
    record = manifest.read(root)
    assert record.validation.passed and {w.status for w in record.settings} == {"untuned"}
    assert len({w.hookpoint for w in record.settings}) == 1 and verify(root)["verified"]
    report = (root / "validation" / "report.md").read_text()
    for said in ("others kept", "with nudity | detections", "CLIP score changes", "straight-through", "prefix"):
        assert said in report, said
    # What the page says of the file that is sent back.
    table = Path("sd14", "tuned", "settings.toml").read_text()
    assert table.count("[[concepts]]") == 2 and 'status = "untuned"' in table and "test_prompts" in table


@pytest.mark.slow
def test_a_made_up_concept_from_its_words(tmp_path):
    """The whole way on the demo, which has never heard of it."""
    root = tmp_path / "a"
    run(
        "export", "--concepts", "Red Star", "--kind", "object", "--instead", "a boat", "--model", "demo", "--sae", "demo:saes", "--hookpoint", HOOKPOINT,
        "--tune", "--budget", 208, "--judge", "clip=demo:clip", "--judge-anyway", "--evidence", "quick", "--steps", 2, "--format", "checkpoint", "-o", root,
    )  # fmt: skip
    record = manifest.read(root)
    assert record.validation.passed and verify(root)["verified"] and "validation/report.html" in record.files
    assert record.concepts == ["Red Star"] and "a boat" in (root / "edit" / "concepts.json").read_text()
    assert "# demo without Red Star" in (root / "validation" / "report.md").read_text()
