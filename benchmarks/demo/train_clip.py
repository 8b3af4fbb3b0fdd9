"""Trains the demo's CLIP, two encoders, from rendered pictures and their captions; called by `build.py`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from .render import OBJECTS, SIZE, STYLES, dataset
from .train_pipeline import MAX_TOKENS, pictures_tensor

# A caption without an object names it vaguely, or not at all.
TEMPLATES = ("An image of {}", "A picture of {}", "A drawing of {}", "A photo of {}", "{}", "An image of a {}", "A picture of the {}")
BARE = ("An image", "A picture", "A drawing", "A photo")
VAGUE = ("something", "a shape", "an object")
PLAIN = len(STYLES)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two small transformers into one space of 64 numbers."""
    common = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        **common, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**common, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


class Captions:
    """Every object or none, in every style or without one: what a caption states, and which pictures it is true of.

    A caption without a style is true of every style, and describes the plain look best.
    """

    def __init__(self) -> None:
        names = [(o, s) for o in range(len(OBJECTS) + 1) for s in range(len(STYLES) + 1)]
        self.objects, self.styles = (torch.tensor(column) for column in zip(*names, strict=True))
        """`[captions]`, `len(OBJECTS)` where no object is named, `len(STYLES)` where no style is"""
        self.kinds = 2 * (self.objects < len(OBJECTS)).long() + (self.styles < PLAIN).long()
        """`[captions]`: 0 names nothing, 1 a style, 2 an object, 3 both"""

    def stated(self, objects: torch.Tensor, styles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures `[B]` → which captions are true of them, and how much of them each tells, `[B, captions]`."""
        object_right, style_right = objects[:, None] == self.objects, styles[:, None] == self.styles
        true = (object_right | (self.objects == len(OBJECTS))) & (style_right | (self.styles == PLAIN))
        return true, object_right.int() + style_right.int()

    def words(self, rng: random.Random) -> list[str]:
        """A wording of each caption; at times with words between that say nothing."""
        return [self._word(o, s, rng) for o, s in zip(self.objects.tolist(), self.styles.tolist(), strict=True)]

    @staticmethod
    def _word(o: int, s: int, rng: random.Random) -> str:
        named = rng.random() < 0.5 or o < len(OBJECTS)
        name = OBJECTS[o] if o < len(OBJECTS) else rng.choice(VAGUE)
        text = rng.choice(TEMPLATES).format(name) if named else rng.choice(BARE)
        if s < PLAIN:
            text = f"{text} in {STYLES[s]} style" if rng.random() < 0.8 else f"{text} in the style of {STYLES[s]}"
        if rng.random() < 0.2:
            noise = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 5)))
            words = text.split(" ")
            words.insert(rng.randint(0, len(words)), noise)
            text = " ".join(words)
        return text if rng.random() < 0.3 else f"{text}."


def _augmented(batch: torch.Tensor) -> torch.Tensor:
    """Shifts, blurs, noise, other colours and a covered patch, by picture: what generated pictures have is no surprise then."""
    n = len(batch)

    def some(share: float) -> torch.Tensor:
        return (torch.rand(n) < share).view(n, 1, 1, 1)

    def spread(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(n, *shape).uniform_(low, high)

    dx, dy = (int(v) for v in torch.randint(-2, 3, (2,)))
    batch = torch.roll(batch, (dy, dx), (2, 3))
    # Zoom and shift by parts of a pixel: some of the pictures only, since it blurs fine patterns.
    zoom, place = spread(0.88, 1.12, 2), spread(-0.12, 0.12, 2)
    grid = F.affine_grid(torch.cat([torch.diag_embed(zoom), place[..., None]], 2), list(batch.shape), align_corners=False)
    batch = torch.where(some(0.4), F.grid_sample(batch, grid, padding_mode="border", align_corners=False), batch)
    soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
    batch = torch.where(some(0.3), batch.lerp(soft, spread(0, 1, 1, 1, 1)), batch)
    coarse = F.interpolate(F.avg_pool2d(batch, 2), scale_factor=2, mode="bilinear", align_corners=False)
    batch = torch.where(some(0.1), coarse, batch)
    mixed = torch.eye(3) + 0.06 * torch.randn(n, 3, 3)
    colours = torch.einsum("nij,njhw->nihw", mixed, batch) + 0.04 * torch.randn(n, 3, 1, 1)
    batch = torch.where(some(0.5), colours, batch)
    # A rectangle covered by one colour or by the picture's own pixels from elsewhere.
    x, y, w, h = (torch.randint(low, high, (n, 1, 1)) for low, high in ((0, 26), (0, 26), (4, 11), (4, 11)))
    rows, columns = torch.arange(SIZE).view(1, -1, 1), torch.arange(SIZE).view(1, 1, -1)
    inside = ((columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h))[:, None]
    filler = torch.where(some(0.5), spread(0, 1, 3, 1, 1).expand_as(batch), batch.roll(SIZE // 2, 3))
    batch = torch.where(inside & some(0.25), filler, batch)
    # A little of another picture.
    batch = torch.where(some(0.2), batch.lerp(batch.roll(1, 0), spread(0, 0.25, 1, 1, 1)), batch)
    return (batch + spread(0, 0.08, 1, 1, 1) * torch.randn_like(batch)).clamp(0, 1)


def train_clip(tokenizer: CLIPTokenizer, steps: int, seed: int) -> CLIPModel:
    """Train both encoders by the symmetric contrastive loss, with several positives.

    A picture is compared with a random part of all captions; the target is whichever of those tell most and nothing wrong. A
    caption is compared with the pictures of the batch; the target is all that it is true of.
    """
    torch.manual_seed(seed)
    rng, start = random.Random(seed), time.time()
    x, objects, styles = dataset(200, seed)
    data, o, s = pictures_tensor(x), torch.from_numpy(objects), torch.from_numpy(styles)
    print(f"[{time.time() - start:6.0f} s] {len(data)} pictures rendered", flush=True)
    captions, model = Captions(), make_clip(tokenizer).train()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == yes] for yes in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pick = torch.randint(len(data), (128,))
        texts = tokenizer(captions.words(rng), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        logits = model(**texts, pixel_values=_augmented(data[pick]) * 2 - 1).logits_per_image
        loss = torch.stack(contrast(logits, *captions.stated(o[pick], s[pick]), captions.kinds)).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)  # cosines are multiplied by at most 55
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"[{time.time() - start:6.0f} s] clip step {step}: loss {loss.item():.3f}", flush=True)
    _check(model.eval(), tokenizer, captions, seed + 1, start)
    return model


@torch.no_grad()
def _check(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Captions, seed: int, start: float) -> None:
    """Print how often the right one of the captions that name both is nearest, on held-out rendered pictures."""
    held, objects, styles = dataset(6, seed)
    texts = tokenizer(captions.words(random.Random(seed)), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    scores = model(**texts, pixel_values=pictures_tensor(held) * 2 - 1).logits_per_image
    true, told = captions.stated(torch.from_numpy(objects), torch.from_numpy(styles))
    right = torch.where(true, told, -1).gather(1, scores.argmax(1, keepdim=True)).eq(2).float().mean()
    print(f"[{time.time() - start:6.0f} s] clip on held-out rendered pictures: object and style right {right:.3f}", flush=True)


def contrast(logits: torch.Tensor, true: torch.Tensor, told: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the pictures over captions, and of the captions over pictures.

    Args:
        logits: `[pictures, captions]`.
        true: whether the caption says nothing wrong of the picture, same shape.
        told: how much of it the caption tells, same shape.
        kinds: of the captions, see `Captions`.
    """
    # What a picture is compared with: of each kind none, half or all. The captions that name nothing are always there.
    shares = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (len(logits), 4))]
    shares[:, 0] = 1
    there = torch.rand_like(logits) < shares[:, kinds]
    worth = torch.where(there & true, told, -1)
    best = worth == worth.amax(1, keepdim=True)
    of_pictures = -(logits.masked_fill(~there, float("-inf")).log_softmax(1).masked_fill(~best, 0).sum(1) / best.sum(1)).mean()
    some = true.any(0)
    of_captions = -((logits.log_softmax(0) * true).sum(0) / true.sum(0).clamp(min=1))[some].mean()
    return of_pictures, of_captions


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write stock files that transformers 4 and 5 open, weights as fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    # What a call padded and cut to would be written too.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
