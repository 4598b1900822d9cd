"""The operators of rga_fast/fused/ops.py in plain PyTorch: their oracle in tests."""

from typing import Any

import torch
from torch import Tensor

from rga_fast.fused import ops, staged
from rga_fast.fused.operands import Layers, Plan
from rga_fast.fused.shapes import Saved
from rga_fast.fused.structure import Structure


def register(impl: str = "plain") -> torch.library.Library:
    """Defines the operators as `torch.ops.rga_fast_<impl>`; keep what is returned."""
    schemas = ops.SCHEMAS | ops.PAIR
    library = ops.define(impl, schemas)
    for name in schemas:
        library.impl(name, globals()[name], "CompositeExplicitAutograd")
    return library


def training_fwd(namespace, V, weights, norms, eps, batch, *structure):
    """The whole branch by the operators of `namespace`, stage by stage."""
    means, variances, scales, shifts = (tuple(norms[i::4]) for i in range(4))
    layers = Layers(tuple(weights), scales, shifts, means, variances)
    plan = _plan(namespace, structure, batch, eps)
    out, saved, (tracked,), _ = staged.forward([plan], V, [layers])
    return out, *saved, tracked


def training_bwd(namespace, dout, V, *rest):
    *saved, weights, batch, embeddings, relations, appearance, need_dV, need_dweight = rest
    plan = _plan(namespace, (embeddings, relations, appearance), batch, ())
    kept = Saved(*saved)
    kept = kept._replace(PQ=kept.PQ.to(kept.psi.dtype))
    total = V.shape[0] * V.shape[2]
    dV, (gradients,) = staged.backward(
        [plan], total, dout, V, kept, [weights], need_dV, [need_dweight]
    )
    return dV, *gradients


def _plan(namespace, structure, batch, eps) -> Plan:
    return Plan(namespace, "spatial", Structure(*structure), tuple(batch), tuple(eps), group=None)


def training_pair_fwd(namespace, V, weights, norms, eps, batch, *structure):
    first, second = zip(*map(ops.halves, (weights, norms, eps, batch)), strict=True)
    between, *saved = training_fwd(namespace, V, *first, *structure)
    out, *more = training_fwd(namespace, between.transpose(1, 2), *second, *structure)
    return out.transpose(1, 2), [*saved, *more]


def training_pair_bwd(namespace, dout, V, saved, weights, batch, *rest):
    *structure, need_dV, need_dweight = rest
    kept, layers, flags = (ops.halves(values) for values in (saved, weights, batch))
    between = gate_fwd(V, kept[0][3], kept[0][7])  # the logit and how it is normalised
    maps = dout.transpose(1, 2), between.transpose(1, 2)
    of_second = (*kept[1], layers[1], flags[1], *structure, True, need_dweight[1])
    dW, *others = training_bwd(namespace, *maps, *of_second)
    of_first = (*kept[0], layers[0], flags[0], *structure, need_dV, need_dweight[0])
    dV, *own = training_bwd(namespace, dW.transpose(1, 2), V, *of_first)
    return dV, [*own, *others]


def _stats(rows: Tensor) -> Tensor:
    """(B, rows, n) -> (2, rows): mean and biased variance."""
    values = rows.transpose(0, 1).flatten(1)
    mean = values.mean(1, keepdim=True)
    return torch.stack([mean[:, 0], (values - mean).square().mean(1)])


def _centred(rows: Tensor, norm: Tensor) -> Tensor:
    """xhat: (B, rows, n) before the affine part of the normalisation."""
    return (rows.to(norm.dtype) - norm[0, :, None]) * norm[1, :, None]


def _normalised(rows: Tensor, norm: Tensor) -> Tensor:
    return _centred(rows, norm) * norm[2, :, None] + norm[3, :, None]


def _sums(dy: Tensor, rows: Tensor, norm: Tensor) -> Tensor:
    return torch.stack([dy.sum((0, 2)), (dy * _centred(rows, norm)).sum((0, 2))])


def _batch_norm_backward(dy: Tensor, rows: Tensor, norm: Tensor, means: Tensor) -> Tensor:
    """The gradient before a normalisation from that after it."""
    centred = _centred(rows, norm)
    scale = (norm[1] * norm[2])[:, None]
    return scale * (dy - means[0, :, None] - centred * means[1, :, None])


def _masked(dy: Tensor, rows: Tensor, norm: Tensor) -> Tensor:
    return torch.where(_normalised(rows, norm) > 0, dy, 0)


def _parts(V: Tensor, E: Tensor, norm_e: Tensor, embeddings: int, psi_rows: int):
    """[theta; phi] (once where they are one) and psi, normalised."""
    y = _normalised(E, norm_e).relu()
    q = E.shape[1] - psi_rows
    return y[:, :q] if embeddings else V.to(norm_e.dtype), y[:, q:]


def _pair(nodes: Tensor, embeddings: int) -> tuple[Tensor, Tensor]:
    return tuple(nodes.chunk(2, dim=1)) if embeddings == 2 else (nodes, nodes)  # type: ignore[return-value]


def _seen(psi: Tensor, Z: Tensor, norm_z: Tensor) -> Tensor:
    """What the perceptron sees: (B, p + m, n)."""
    return torch.cat([psi, _normalised(Z, norm_z).relu()], dim=1)


def attention(V, weights, norms, eps, embeddings, relations, appearance):
    fours = zip(norms[::4], norms[1::4], norms[2::4], norms[3::4], eps, strict=True)
    tables = [torch.stack([m, torch.rsqrt(v + e), w, b]) for m, v, w, b, e in fours]
    count = embeddings + appearance
    none = weights[-1].new_empty
    weight_e = torch.cat(weights[:count]) if count else none(0, V.shape[1])
    norm_e = torch.cat(tables[:count], dim=1) if count else none(4, 0)
    weight_z = weights[count] if relations else none(0, 2 * V.shape[2])
    norm_z = tables[count] if relations else none(4, 0)
    psi_rows = len(weights[count - 1]) if appearance else 0
    E, _ = embed_fwd(V, weight_e)
    _, Z, psi, _ = relate_fwd(V, E, norm_e, weight_z, embeddings, psi_rows)
    hidden, _ = hidden_fwd(psi, Z, norm_z, weights[-2])
    logit, _ = logit_fwd(hidden, tables[-2], weights[-1])
    return gate_fwd(V, logit, tables[-1])


def attention_pair(V, weights, norms, eps, *structure):
    first, second = zip(*map(ops.halves, (weights, norms, eps)), strict=True)
    between = attention(V, *first, *structure).transpose(1, 2)
    return attention(between, *second, *structure).transpose(1, 2)


def embed_fwd(V, weight_e):
    E = weight_e @ V.to(weight_e.dtype)
    return E.to(V.dtype), _stats(E)


def relate_fwd(V, E, norm_e, weight_z, embeddings, psi_rows):
    nodes, psi = _parts(V, E, norm_e, embeddings, psi_rows)
    psi = psi.mean(1, keepdim=True) if psi_rows else psi
    m, n = len(weight_z), V.shape[2]
    theta, phi = _pair(nodes, embeddings)
    W_row, W_col = weight_z[:, :n], weight_z[:, n:]
    if embeddings == 2:
        PQ = torch.cat([W_row @ phi.transpose(1, 2), W_col @ theta.transpose(1, 2)], dim=2)
    else:
        PQ = (W_row + W_col) @ theta.transpose(1, 2)
    if m == 0:
        return _empty(PQ), E.new_empty(len(V), 0, n), psi, norm_e.new_empty(2, 0)
    Z = PQ @ nodes
    return PQ, Z.to(V.dtype), psi, _stats(Z)


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


def hidden_fwd(psi, Z, norm_z, weight_h):
    hidden = weight_h @ _seen(psi, Z, norm_z)
    return hidden, _stats(hidden)


def logit_fwd(hidden, norm_h, weight_l):
    logit = weight_l @ _normalised(hidden, norm_h).relu()
    return logit[:, 0], _stats(logit)


def _gate(logit: Tensor, norm_l: Tensor) -> Tensor:
    return torch.sigmoid(_normalised(logit[:, None], norm_l))


def gate_fwd(V, logit, norm_l):
    return torch.empty_like(V).copy_(V * _gate(logit, norm_l))


def gate_bwd(dout, V, logit, norm_l):
    a = _gate(logit, norm_l)
    dlogit = (dout.to(a.dtype) * V).sum(1, keepdim=True) * a * (1 - a)
    return dlogit[:, 0].contiguous(), _sums(dlogit, logit[:, None], norm_l)


def logit_bwd(
    V, E, norm_e, PQ, psi, norm_z, weight_h, norm_h, weight_l, logit, norm_l, dlogit, means_l,
    embeddings, psi_rows,
):  # fmt: skip
    nodes, _ = _parts(V, E, norm_e, embeddings, psi_rows)
    Z = (PQ @ nodes).to(V.dtype)
    hidden = weight_h @ _seen(psi, Z, norm_z)
    dl = _batch_norm_backward(dlogit[:, None], logit[:, None], norm_l, means_l)
    dweight_l = (dl @ _normalised(hidden, norm_h).relu().transpose(1, 2)).sum(0)
    dy = _masked(weight_l.t() @ dl, hidden, norm_h)
    return Z, hidden, dl[:, 0].contiguous(), dweight_l, _sums(dy, hidden, norm_h)


def hidden_bwd(psi, Z, norm_z, weight_h, hidden, norm_h, means_h, weight_l, dl):
    dy = _masked(weight_l.t() @ dl[:, None], hidden, norm_h)
    dhidden = _batch_norm_backward(dy, hidden, norm_h, means_h)
    dweight_h = (dhidden @ _seen(psi, Z, norm_z).transpose(1, 2)).sum(0)
    dz = _masked((weight_h.t() @ dhidden)[:, psi.shape[1] :], Z, norm_z)
    return dhidden, dweight_h, _sums(dz, Z, norm_z)


def relate_bwd(
    V, E, norm_e, weight_z, PQ, Z, norm_z, means_z, weight_h, dhidden, embeddings, psi_rows
):
    n, p = V.shape[2], 1 if psi_rows else 0
    nodes, _ = _parts(V, E, norm_e, embeddings, psi_rows)
    dseen = weight_h.t() @ dhidden
    dZ = _batch_norm_backward(_masked(dseen[:, p:], Z, norm_z), Z, norm_z, means_z)
    dnodes, dweight_z = _relations_bwd(dZ, nodes, PQ, weight_z, embeddings)
    dpsi = dseen[:, :p].expand(-1, psi_rows, -1) / max(psi_rows, 1)
    dE: Any = torch.cat([dnodes, dpsi], dim=1) if embeddings else dpsi
    dE = _masked(dE, E, norm_e)
    kept = V.new_empty(len(V), 0, n) if embeddings or not len(weight_z) else dnodes.to(V.dtype)
    return dE.to(V.dtype), kept, dweight_z, _sums(dE, E, norm_e)


def _relations_bwd(dZ, nodes, PQ, weight_z, embeddings):
    n = nodes.shape[2]
    theta, phi = _pair(nodes, embeddings)
    W_row, W_col = weight_z[:, :n], weight_z[:, n:]
    dPQ = dZ @ nodes.transpose(1, 2)
    dnodes = PQ.transpose(1, 2) @ dZ
    if embeddings == 2:
        dP, dQ = dPQ.chunk(2, dim=2)
        dnodes += torch.cat([dQ.transpose(1, 2) @ W_col, dP.transpose(1, 2) @ W_row], dim=1)
        return dnodes, torch.cat([(dP @ phi).sum(0), (dQ @ theta).sum(0)], dim=1)
    dW = (dPQ @ theta).sum(0)
    return dnodes + dPQ.transpose(1, 2) @ (W_row + W_col), torch.cat([dW, dW], dim=1)


def embed_bwd(
    dout, V, logit, norm_l, E, norm_e, means_e, weight_e, dE, dnodes, need_dV, need_dweight
):
    dE = _batch_norm_backward(dE.to(norm_e.dtype), E, norm_e, means_e)
    dV = V.new_empty(len(V), 0, V.shape[2])
    dweight = weight_e.new_empty(0, V.shape[1])
    if need_dV:
        value = weight_e.t() @ dE + dout * _gate(logit, norm_l)
        value = value + dnodes if dnodes.shape[1] else value
        dV = torch.empty_like(V).copy_(value)
    if need_dweight:
        dweight = (dE @ V.to(dE.dtype).transpose(1, 2)).sum(0)
    return dV, dweight
