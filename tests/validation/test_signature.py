"""Signatures: what they cover, what they find, and keys that are none."""

# ruff: noqa: F811 - fixtures

import random
import shutil

import pytest
from tests.conftest import refused, run
from tests.validation.test_verify import copy, failures, files_of, rewrite, whole  # noqa: F401

from saeuron.validation.artifact import contents, manifest
from saeuron.validation.trust import signature
from saeuron.validation.trust.verify import verify


@pytest.fixture
def keys(tmp_path):
    """Private and public PEM files, by name."""
    pytest.importorskip("model_signing.signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def save(name, key, password=None):
        cipher = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        private, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher))
        public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return {
        "mine": save("mine", ec.generate_private_key(ec.SECP256R1())), "other": save("other", ec.generate_private_key(ec.SECP384R1())),
        "rsa": save("rsa", rsa.generate_private_key(65537, 2048)), "locked": save("locked", ec.generate_private_key(ec.SECP256R1()), b"word"),
    }  # fmt: skip


def test_signatures(copy, keys):
    private, public = keys["mine"]
    assert failures(copy, public_key=public) == ["the artifact is not signed: it has no model.sig"]
    run("sign", copy, "--key", private)
    found = verify(copy, public)
    assert found["verified"] and found["signature"] == "valid"
    assert failures(copy, public_key=keys["other"][1]) == [f"the signature was made with another key than '{keys['other'][1]}'"]
    unchecked = run("verify", copy)
    assert "not checked: signature (no public key given)" in unchecked.stderr and "signature not checked" in unchecked.stdout
    # A loader takes a signed artifact as any other.
    contents.check(copy, manifest.read(copy))
    contents.write(copy, manifest.read(copy))
    assert manifest.SIGNATURE not in manifest.read(copy).files


def test_a_signature_finds_what_the_manifest_was_made_to_fit(whole, copy, keys):
    private, public = keys["mine"]
    signature.sign(copy, private)
    for name in ("README.md", "tokenizer/vocab.json"):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        rewrite(copy)
        lines = failures(copy, public_key=public)
        assert len(lines) == 1 and "the signature doesn't fit" in lines[0] and name in lines[0]
        assert failures(copy) == []
        shutil.copyfile(whole / name, copy / name)
    shutil.copyfile(whole / manifest.NAME, copy / manifest.NAME)
    assert failures(copy, public_key=public) == []
    (copy / "more.json").write_text("{}")
    rewrite(copy)
    assert failures(copy, public_key=public)


def test_a_signature_that_leaves_files_out(whole, copy, keys, tmp_path):
    """Over two files only, by the right key."""
    part = tmp_path / "part"
    part.mkdir()
    for name in (manifest.NAME, "README.md"):
        shutil.copyfile(whole / name, part / name)
    shutil.copyfile(signature.sign(part, keys["mine"][0]), copy / manifest.SIGNATURE)
    (line,) = failures(copy, public_key=keys["mine"][1])
    assert "doesn't cover" in line


def test_a_damaged_signature(copy, keys):
    private, public = keys["mine"]
    content = signature.sign(copy, private).read_bytes()
    draw = random.Random(random.SystemRandom().randrange(2**32))
    damaged = [b"", b"{}", b"\xff", b"[]", b'{"dsseEnvelope": {"payload": ""}}', content[: len(content) // 2]]
    for _ in range(40):
        bit = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    kept = 0
    for bad in damaged:
        (copy / manifest.SIGNATURE).write_bytes(bad)
        lines = failures(copy, public_key=public)
        # A bit of JSON's own spelling, of a hint or of base64's padding may change nothing that is signed.
        kept += not lines
        assert len(lines) <= 1
    assert kept <= 4


def test_keys_that_cannot_be_used(copy, keys, monkeypatch):
    refused("is of another kind", "sign", copy, "--key", keys["rsa"][0])
    refused("is of another kind", "verify", copy, "--public-key", keys["rsa"][1])
    refused("is no private key", "sign", copy, "--key", keys["mine"][1])
    refused("is no public key", "verify", copy, "--public-key", keys["mine"][0])
    refused("no file", "sign", copy, "--key", copy / "nothing")
    refused("SAEURON_KEY_PASSWORD", "sign", copy, "--key", keys["locked"][0])
    monkeypatch.setenv("SAEURON_KEY_PASSWORD", "word")
    run("sign", copy, "--key", keys["locked"][0])
    assert failures(copy, public_key=keys["locked"][1]) == []


def test_what_does_not_verify_is_not_signed(copy, keys):
    (copy / "README.md").write_text("other")
    refused("doesn't verify, so it isn't signed", "sign", copy, "--key", keys["mine"][0])
    assert not (copy / manifest.SIGNATURE).exists()
