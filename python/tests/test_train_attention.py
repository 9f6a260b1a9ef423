"""Attention that is spelled out: it is found, with the bytes that fused attention would save."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tidegate.torch import TrainStep  # noqa: E402
from tidegate.torch.graph import Stages  # noqa: E402
from tidegate.torch.live import Live  # noqa: E402


class SpelledOut(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))

    def heads(self, x):
        rows, length, width = x.shape
        return x.view(rows, length, 4, width // 4).transpose(1, 2)

    def forward(self, x):
        query, key, value = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        if self.form == "fused":
            found = F.scaled_dot_product_attention(query, key, value)
        elif self.form == "einsum":
            weights = torch.einsum("bhid,bhjd->bhij", query, key).mul(0.25).softmax(dim=3)
            found = torch.einsum("bhij,bhjd->bhid", weights, value)
        else:
            scores = query @ key.transpose(-2, -1) / 4
            if self.form == "causal":
                length = x.shape[1]
                scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
            weights = F.softmax(scores, -1)
            if self.form == "dropout":
                weights = F.dropout(weights, 0.1)
            found = weights @ value
        return x + self.out(found.transpose(1, 2).reshape(x.shape))


class Whole(SpelledOut):
    """The same in a forward that cannot be taken apart, since it decides by a value."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


X = torch.randn(2, 128, 64)


def kept_bytes(model):
    """Return what a forward keeps for backward."""
    with Live([*model.parameters(), X]) as live:
        output = model(X)
        kept = live.now
    del output
    return kept


@pytest.mark.parametrize("kind", [SpelledOut, Whole])
@pytest.mark.parametrize("form", ["scaled", "einsum", "dropout", "causal"])
def test_the_bytes_are_those_that_fused_attention_does_not_keep(kind, form):
    model = nn.Sequential(*[kind(form) for _ in range(3)])
    fused = nn.Sequential(*[kind("fused") for _ in range(3)])
    found = Stages(model, [X]).attention
    assert [(one.name, one.dropout) for one in found] == [(name, form == "dropout") for name in "012"]
    # The mask of the causal form is kept too, and is not counted: it is the same in all.
    masks = 3 * 128 * 128 if form == "causal" else 0
    assert kept_bytes(model) - kept_bytes(fused) - masks == sum(one.bytes for one in found)


class Gated(nn.Module):
    """Weights of experts, which are no attention: a product of rows, `softmax`, another product."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(64, 8), nn.Parameter(torch.randn(8, 64))

    def forward(self, x):
        return x + F.softmax(self.gate(x), -1) @ self.experts


def test_what_is_no_attention_is_not_found():
    for model in (SpelledOut("fused"), Gated(), nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0)):
        assert Stages(nn.Sequential(model), [X]).attention == []


def test_the_report_says_what_would_help():
    def report(*forms):
        model = nn.Sequential(*map(SpelledOut, forms))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = TrainStep(model, F.mse_loss, optimizer, memory="1GiB")
        step((X, X))
        return str(step.report())

    assert "Attention" not in report("fused")
    words = report("scaled", "einsum", "scaled", "causal")
    assert "Attention is spelled out in 0, 1, 2 and 1 more: in one piece, a batch keeps " in words
    assert "scaled_dot_product_attention would keep none of them." in words
    assert "but on the CPU it keeps them too where there is dropout" in report("dropout")
    assert "would keep 0.5 MiB less" in report("dropout", "scaled")
