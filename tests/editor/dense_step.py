"""The training step written plainly, with dense `[tokens, n]` matrices and autograd: what `editor/sae/sae_step.py` is measured against."""

import torch
import torch.nn.functional as F


def dense_step(sae, tokens, k=None, *, batch_topk=True, dead=None):
    """Loss (differentiable), FVU and AuxK's loss of tokens `[N, d]`, and the dense codes `[N, n]`; arguments as in `step_loss`."""
    k = sae.config.k if k is None else k
    x = tokens.to(sae.W_enc.dtype)
    if sae.config.input_unit_norm:
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    pre = F.linear(x - sae.b_dec, sae.W_enc, sae.b_enc)
    z = pre.relu()
    if batch_topk:
        best = z.flatten().topk(k * len(x), sorted=False)
        z = torch.zeros_like(z).flatten().scatter(0, best.indices, best.values).view_as(z)
    else:
        best = z.topk(k, dim=1)
        z = torch.zeros_like(z).scatter(1, best.indices, best.values)
    error = x - (z @ sae.W_dec + sae.b_dec)
    loss = fvu = error.square().sum() / (x - x.mean(0)).square().sum()
    aux = torch.zeros_like(fvu)
    if dead is not None and bool(dead.any()):
        count, half = int(dead.sum()), x.shape[1] // 2
        top = pre[:, dead].topk(min(half, count), dim=1)
        guess = torch.zeros(len(x), count, dtype=x.dtype).scatter(1, top.indices, top.values.relu()) @ sae.W_dec[dead]
        residual = error.detach()
        aux = (guess - residual).square().sum() / residual.square().sum()
        loss = fvu + 1 / 32 * min(1.0, count / half) * aux
    return loss, fvu.detach(), aux.detach(), z.detach()
