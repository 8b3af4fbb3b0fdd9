"""Publishing through the real client to a local server, and back: what was sent is what verifies and validates on the other side."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from tests import made_up
from tests.conftest import refused, run
from tests.export.hub_server import serving
from tests.export.test_artifact import settings
from tests.made_up import as_manifest, said
from tests.validation.test_signature import keys  # noqa: F401 - a fixture
from tests.validation.test_verify import files_of, rewrite, whole  # noqa: F401 - fixtures

from saeuron.editor.common.errors import SaeuronError
from saeuron.editor.common.files import file_sha256
from saeuron.export.plan.dry_run import describe
from saeuron.export.plan.settings import Settings
from saeuron.export.ship import licence, publishing
from saeuron.export.ship.card import model_card
from saeuron.validation.artifact import contents, manifest
from saeuron.validation.artifact.manifest import Licence
from saeuron.validation.trust.verify import GOLDEN, verify

pytestmark = pytest.mark.slow

# The client reads its settings once, at import, so it runs in a process of its own, as a user's does.
_RUN = "import sys\nfrom saeuron.export import cli\ntry:\n    cli.main()\nfinally:\n    print('torch' if 'torch' in sys.modules else 'bare', file=sys.stderr)"


class Client:
    """`saeuron` against a server."""

    def __init__(self, hub, home):
        self.hub, self.home = hub, home

    def __call__(self, *options, token="writer", code=0, endpoint=None, **more):
        unset = ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        environment = {
            **{k: v for k, v in os.environ.items() if k not in unset}, "HF_ENDPOINT": endpoint or self.hub.url, "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}), **more,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *map(str, options)], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        if code == 2:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            assert len(lines) == 1 and done.stdout == "", done.stdout + done.stderr
            return lines[0]
        return done


def test_every_file_that_an_export_writes_is_known(tmp_path):
    """Else nothing with it could be published without golden vectors."""
    planned = describe(Settings(("Neon",), tmp_path / "a", "checkpoint,onnx", evidence="quick"))["files"]
    known = [
        re.sub("<hash>", "0123456789ab", name) for name in planned if name not in (GOLDEN, manifest.NAME) and "report-pictures" not in name
    ]
    assert "edit/concepts.json" in known and [name for name in known if not publishing._KNOWN.fullmatch(name)] == []


@pytest.fixture
def hub():
    with serving() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path / "home")


PUBLISH = ("--license", "creativeml-openrail-m")


def test_there_and_back(whole, hub, client, keys, tmp_path):  # noqa: F811
    """Published and signed; fetched by its commit, it verifies with the publisher's key and validates; the folder stays as it was."""
    before = {name: file_sha256(whole / name) for name in files_of(whole)}
    private, public = keys["mine"]
    found = client("publish", whole, "me/hardened", *PUBLISH, "--sign", private, "--message", "first")
    assert found.stderr.splitlines()[-1] == "bare"
    assert "it holds pictures and latents of the unedited model" in found.stderr
    repo = hub.repos["me/hardened"]
    commit = repo.branches["main"]
    assert repo.private and repo.messages == ["initial commit", "first"]
    assert (
        f"commit {commit}" in found.stdout
        and f"saeuron verify me/hardened@{commit}" in found.stdout
        and f'revision="{commit}"' in found.stdout
    )
    assert {*files_of(whole), manifest.SIGNATURE, ".gitattributes"} == set(repo.commits[commit])
    assert before == {name: file_sha256(whole / name) for name in files_of(whole)}

    checked = client("verify", f"me/hardened@{commit}", "--public-key", public, "--json")
    assert "warning" not in checked.stderr
    said = json.loads(checked.stdout)
    assert said["verified"] and said["signature"] == "valid" and said["pinned"]
    folder = said["folder"]
    assert "verified" in client("verify", folder, "--public-key", public).stdout
    client("validate", folder, "--backend", "onnx")
    unpinned = client("verify", "me/hardened")
    assert "is not pinned" in unpinned.stderr and commit in unpinned.stdout
    assert "not checked: signature" in unpinned.stderr
    # Into a folder of its own, as `hf download --local-dir` does.
    code = f"from huggingface_hub import snapshot_download; snapshot_download('me/hardened', revision='{commit}', local_dir='{tmp_path / 'local'}')"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "writer",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "h"),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert verify(tmp_path / "local", public)["verified"]

    # Swapped on the server, by whoever can write there but has no key: the manifest is made to fit.
    files = dict(repo.commits[commit])
    record = json.loads(files[manifest.NAME])
    files["README.md"] += b"more"
    record["files"]["README.md"] = {"sha256": hashlib.sha256(files["README.md"]).hexdigest(), "bytes": len(files["README.md"])}
    files[manifest.NAME] = manifest.encode(as_manifest(record))
    swapped = repo.commit("main", files, "swapped")
    assert "verified" in client("verify", f"me/hardened@{swapped}").stdout
    found = client("verify", f"me/hardened@{swapped}", "--public-key", public, code=1)
    assert "README.md, saeuron.json changed since it was made" in found.stderr


def test_card_and_manifest_of_what_is_published(whole, hub, client, tiny):  # noqa: F811
    from huggingface_hub import ModelCard

    client("publish", whole, "me/open", *PUBLISH, "--public", "--without-golden", "--branch", "v1")
    repo = hub.repos["me/open"]
    assert not repo.private and set(repo.branches) == {"main", "v1"} and list(repo.commits[repo.branches["main"]]) == [".gitattributes"]
    files = repo.commits[repo.branches["v1"]]
    assert GOLDEN not in files
    record = json.loads(files[manifest.NAME])
    assert (
        record["published"] == {"repo": "me/open"} and record["license"]["id"] == "creativeml-openrail-m" and GOLDEN not in record["files"]
    )
    text = files["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert (
        data["license"] == "creativeml-openrail-m"
        and {"saeuron", "concept-removal", "onnx"} <= set(data["tags"])
        and data["pipeline_tag"] == "text-to-image"
    )
    assert 'from_pretrained("me/open", revision="COMMIT", trust_remote_code=True)' in text and "saeuron verify me/open@COMMIT" in text
    assert "were left out" in text
    assert "no GPU has run this artifact" in text and "THIS_FOLDER --model BASE_MODEL" in text
    checked = client("verify", "me/open@v1", "--json")
    assert json.loads(checked.stdout)["verified"] and not json.loads(checked.stdout)["pinned"]
    folder = json.loads(checked.stdout)["folder"]
    assert "--model" in client("validate", folder, "--backend", "onnx", code=2)
    proof = json.loads(client("validate", folder, "--model", tiny["model"], "--sae", tiny["sae"], "--seed", 5, "--json").stdout)
    assert proof["passed"] and set(proof["backends"]) == {"checkpoint", "onnx"}


def latest(repo):
    """Path → content, as `main` holds it."""
    return repo.commits[repo.branches["main"]]


def test_a_report_in_the_artifact_is_the_cards_evidence(whole, hub, client, tmp_path):  # noqa: F811
    root = shutil.copytree(whole, tmp_path / "artifact")
    run("report", root, "--into-artifact", "--no-pictures")
    assert verify(root)["verified"]
    client("publish", root, "me/public", *PUBLISH, "--public", "--without-golden")
    sent = latest(hub.repos["me/public"])
    assert {"validation/report.html", "validation/report.md"} <= set(sent) and b"left out on purpose" in sent["validation/report.html"]
    assert b"## Evidence" in sent["README.md"] and GOLDEN not in sent
    # Whoever has it can make a report of it; there is nothing to show before and after.
    folder = tmp_path / "theirs"
    for name, content in sent.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    run("report", folder)
    assert "the golden vectors, which hold them, are not in the artifact" in (tmp_path / "theirs-report" / "report.md").read_text()


def test_a_report_with_pictures_stays_with_the_golden_vectors(tmp_path):
    root = made_up.artifact(tmp_path / "a", proof=made_up.report())
    pages = {"validation/report.html", "validation/report.md"}

    def sent(golden):
        wish = publishing.Publication(root, "me/x", golden=golden)
        with publishing.staged(wish, manifest.read(root), None, lambda text: None) as found:
            evidence = "## Evidence" in (found.folder / "README.md").read_text()
            return (
                {name for name in found.files if "report" in name and name != "validation/report.json"},
                evidence,
                " ".join(found.warnings),
            )

    run("report", root, "--into-artifact")
    shown, evidence, _ = sent(True)
    assert pages < shown and evidence
    shown, evidence, warnings = sent(False)
    assert not shown and not evidence and "--no-pictures` goes along" in warnings
    # The page itself tells, whatever lies beside it.
    record = manifest.read(root)
    for name in [name for name in record.files if "report-pictures" in name]:
        (root / name).unlink()
    page = root / "validation" / "report.html"
    written = page.read_text()
    assert "data:image" in written
    for hidden in ("data:image", "DATA:image", "data&#58;image", "da\nta:image", "data:;base64"):
        page.write_text(written.replace("data:image", hidden))
        remade(root)
        assert sent(False)[:2] == (set(), False), hidden
    run("report", root, "--into-artifact", "--overwrite", "--no-pictures")
    assert sent(False)[:2] == (pages, True) and "stays here" not in sent(False)[2]
    # Nobody knows what a file shows that this package doesn't write, and a copy of golden vectors shows what they do.
    golden = (root / GOLDEN).read_bytes()
    for name, content in (
        ("validation/x.png", b"x"), ("unet/before.png", b"x"), ("edit/golden2.safetensors", b"x"), ("validation/golden.json", b"{}"), (".cache/g.safetensors", b"x"),
        ("validation/pictures/1.png", b"x"), ("unet/golden.safetensors", b"x"), ("unet/model.safetensors", golden),
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        remade(root)
        with pytest.raises(SaeuronError, match="is no file that this package writes"):
            sent(False)
        sent(True)
        (root / name).unlink()


def remade(root):
    """The manifest made to fit the files."""
    contents.write(root, manifest.read(root))


def test_a_second_time_sends_only_what_changed(whole, hub, client, tmp_path):  # noqa: F811
    client("publish", whole, "me/x", *PUBLISH)
    sent = len(hub.uploads)
    first = hub.repos["me/x"].branches["main"]
    # The same again: no commit. Without the golden vectors: they are gone there too, and nothing large is sent.
    again = json.loads(client("publish", whole, "me/x", *PUBLISH, "--json").stdout)
    assert again["commit"] == first and not again["created"]
    client("publish", whole, "me/x", *PUBLISH, "--without-golden")
    assert len(hub.uploads) == sent and GOLDEN not in hub.repos["me/x"].commits[hub.repos["me/x"].branches["main"]]


def test_a_cut_upload_is_taken_up_again(whole, hub, client):  # noqa: F811
    hub.cut_after = 2
    assert "could not be written" in client("publish", whole, "me/x", *PUBLISH, code=2)
    assert list(hub.repos["me/x"].commits[hub.repos["me/x"].branches["main"]]) == [".gitattributes"], "half of it can be fetched"
    kept = list(hub.uploads)
    assert len(kept) == 2
    hub.cut_after = None
    client("publish", whole, "me/x", *PUBLISH)
    assert len(set(hub.uploads)) == len(hub.uploads) and hub.uploads[:2] == kept


def test_what_the_hub_refuses(whole, hub, client):  # noqa: F811
    command = ("publish", whole, "me/x", *PUBLISH)
    assert "there is no token; run `hf auth login`, or set HF_TOKEN" in client(*command, token=None, code=2)
    assert "the token is not valid" in client(*command, token="stale", code=2)
    assert "the Hub can't be reached" in client(*command, endpoint="http://127.0.0.1:9", code=2)
    # This server has no Xet store; the client asks for one unless told otherwise.
    assert "HF_HUB_DISABLE_XET=1 sends" in client("publish", whole, "me/xet", *PUBLISH, code=2, HF_HUB_DISABLE_XET="0")
    assert "HF_HUB_OFFLINE is set" in client(*command, code=2, HF_HUB_OFFLINE="1")
    assert "'me/x' could not be made: the token has no permission" in client(*command, token="reader", code=2)
    assert 'under the namespace "you"' in client("publish", whole, "you/x", *PUBLISH, code=2)
    hub.add("you/taken", private=False)
    line = client("publish", whole, "you/taken", *PUBLISH, "--public", "--without-golden", code=2)
    assert "'you/taken' could not be written: the token has no permission" in line and "rights to write" in line
    assert hub.uploads == []


def test_repositories_that_are_left_alone(whole, hub, client):  # noqa: F811
    hub.add("me/other", private=True, files={"pytorch_model.bin": b"x", "config.json": b"{}"})
    assert "holds something else" in client("publish", whole, "me/other", *PUBLISH, code=2)
    hub.add("me/seen", private=False)
    assert "exists and is public; say --public" in client("publish", whole, "me/seen", *PUBLISH, code=2)
    hub.add("me/hidden", private=True)
    assert "exists and is private; leave --public out" in client(
        "publish", whole, "me/hidden", *PUBLISH, "--public", "--with-golden", code=2
    )
    assert hub.uploads == []


def test_files_that_no_artifact_brought_stay(whole, hub, client):  # noqa: F811
    """Beside an artifact, or in another branch of its repository: nothing is written."""
    client("publish", whole, "me/mixed", *PUBLISH, "--without-golden")
    repo = hub.repos["me/mixed"]
    with_more = repo.commit("main", {**latest(repo), "eval.csv": b"1"}, "mine")
    assert "holds something else (eval.csv)" in client("publish", whole, "me/mixed", *PUBLISH, "--without-golden", code=2)
    assert repo.branches["main"] == with_more
    repo.commit("main", {k: v for k, v in latest(repo).items() if k != "eval.csv"}, "away")
    data = repo.commit("data", {"train.parquet": b"1", "README.md": b"2"}, "data")
    assert "holds something else (train.parquet)" in client("publish", whole, "me/mixed", *PUBLISH, "--branch", "data", code=2)
    assert repo.branches["data"] == data


def test_another_content_on_the_hub_is_found(whole, hub, client):  # noqa: F811
    hub.corrupts = "vae/config.json"
    assert "'vae/config.json' in 'me/x' at commit" in client("publish", whole, "me/x", *PUBLISH, code=2)


@pytest.fixture
def derived(whole, tmp_path):  # noqa: F811
    """An artifact whose base model is on the Hub, and whose licence is not known here."""
    copy = shutil.copytree(whole, tmp_path / "derived")
    rewrite(copy, model={**said(copy)["model"], "source": "base/model"}, license=None)
    return copy


def test_the_base_models_card_on_the_hub(derived, hub, client):
    hub.add("base/model", card={"license": "openrail++"})
    client("publish", derived, "me/x")
    text = hub.repos["me/x"].commits[hub.repos["me/x"].branches["main"]]["README.md"].decode()
    assert 'license: "openrail++"' in text and 'base_model: "base/model"\nbase_model_relation: finetune' in text
    assert "licence conflict: --license says 'mit'" in client("publish", derived, "me/x", "--license", "mit", code=2)
    hub.repos["base/model"].card = {}
    assert "the licence of 'base/model' is not known" in client("publish", derived, "me/x", code=2)
    hub.repos["base/model"].card = {"license": "cc-by-nc-nd-4.0"}
    assert "lets nobody share derived works" in client("publish", derived, "me/y", "--public", "--without-golden", code=2)
    hub.repos["base/model"].gated = "manual"
    assert "is gated (manual)" in client("publish", derived, "me/y", "--public", "--without-golden", code=2)
    assert "me/y" not in hub.repos


def test_a_dry_run_asks_nobody(whole, derived, hub, client, tmp_path):  # noqa: F811
    found = client("publish", derived, "me/x", "--dry-run", token=None, endpoint="http://127.0.0.1:9")
    assert found.stderr.splitlines()[-1] == "bare" and "its card on the Hub is asked when publishing" in found.stderr
    for name in files_of(derived):
        assert any(line.split()[-1] == name for line in found.stdout.splitlines()), name
    found = json.loads(client("publish", whole, "me/x", *PUBLISH, "--dry-run", "--json", token=None).stdout)
    assert found["files"]["unet/model.onnx"] == (whole / "unet/model.onnx").stat().st_size and found["dry_run"] and "commit" not in found
    assert hub.asked == [] and hub.repos == {}


def test_what_is_not_published(whole, tmp_path, tiny, keys):  # noqa: F811
    copy = shutil.copytree(whole, tmp_path / "copy")
    dry = ("publish", copy, "me/x", *PUBLISH, "--dry-run")
    refused("say --with-golden to make them public, or --without-golden", *dry, "--public")
    refused("the licence of 'model' is not known", "publish", copy, "me/x", "--dry-run")
    refused("give OWNER/NAME", "publish", copy, "x", "--dry-run")
    refused("is no name of a repository", "publish", copy, "me/..x--", "--dry-run")
    refused("is no artifact", "publish", copy / "unet", "me/x", "--dry-run")
    refused("says nothing", "publish", copy, "me/x", "--license", "other", "--dry-run")
    run("sign", copy, "--key", keys["mine"][0])
    refused("sign again with --sign KEY", *dry)
    assert json.loads(run(*dry, "--sign", keys["other"][0], "--json").stdout)["signed"]
    (copy / "vae" / "config.json").write_text("{}")
    refused("doesn't verify, so it isn't published: 'vae/config.json'", *dry)
    record = manifest.read(whole)
    shutil.rmtree(copy)
    shutil.copytree(whole, copy)
    rewrite(copy, validation={**said(copy)["validation"], "passed": False, "failures": ["gates differ"]})
    refused("is not proven (its proof failed)", *dry)
    assert not json.loads(run(*dry, "--unproven", "--json").stdout)["proven"]
    rewrite(copy, validation=None)
    refused("exported with --no-validate", *dry)
    assert "**Unproven.**" in model_card(manifest.read(copy)) and "**Unproven.**" not in model_card(record)


def test_licences(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: my-terms\nlicense_link: https://x\n---\nhello")
    found = licence.of_model(tmp_path)
    assert found == Licence(id="other", name="my-terms", link="https://x", source="the base model's card")
    assert licence.settle(found, None, "m", True) == found
    for text in (
        "no head",
        "---\n: [\n---\n",
        "---\nlicense: 3\n---\n",
        "---\nlicense: [mit, 3]\n---\n",
        "---\nlicense: []\n---\n",
        "---\nlicense: Unknown\n---\n",
        "---\n- a\n---\n",
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence.of_model(tmp_path) is None, text
    (tmp_path / "README.md").write_text("---\nlicense: [mit]\n---\n")
    assert licence.of_model(tmp_path).id == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [MIT, apache-2.0]\n---\n")
    both = licence.of_model(tmp_path)
    assert licence.settle(both, None, "m", True).id == "mit, apache-2.0"
    with pytest.raises(SaeuronError, match="licence conflict"):
        licence.settle(both, "mit", "m", False)


@pytest.mark.parametrize(
    "card",
    [
        {"license": "cc-by-nd-4.0"}, {"license": ["mit", "cc-by-nc-nd-4.0"]}, {"license": "other", "license_name": "cc_by_nc_nd_4.0"},
        {"license": "other", "license_name": "mine", "license_link": "https://creativecommons.org/licenses/by-nd/4.0/"}, {"license": "other", "license_name": "No-Derivatives"},
    ],
)  # fmt: skip
def test_a_licence_without_derivatives_is_never_made_public(card):
    known = licence.of_metadata(card)
    assert known is not None and licence.settle(known, None, "m", False) == known
    with pytest.raises(SaeuronError, match="lets nobody share derived works"):
        licence.settle(known, None, "m", True)


@pytest.mark.parametrize(
    "card", [{"license": "openrail++"}, {"license": "other", "license_name": "and-terms", "license_link": "https://x.org/android"}]
)
def test_a_licence_with_derivatives(card):
    known = licence.of_metadata(card)
    assert licence.settle(known, None, "m", True) == known


def test_the_export_records_the_licence_and_signs(tiny, tmp_path, keys):  # noqa: F811
    from saeuron.export.ship.stages import export_artifact

    model = shutil.copytree(tiny["model"], tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    refused("no file", "export", "--concepts", "Neon", "--sign", tmp_path / "nothing", "-o", tmp_path / "x")
    made = export_artifact(settings(tiny, tmp_path / "out", model=str(model), sign=keys["mine"][0]))
    assert made.manifest.license.id == "mit" and made.manifest.validation.gpu is None
    assert verify(made.path, keys["mine"][1])["signature"] == "valid"
