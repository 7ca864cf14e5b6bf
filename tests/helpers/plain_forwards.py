"""What published networks compute, written out over their tables of tensors, one line an operation.

Each has arguments for differences between projects that no tensor shows, so that a test can also ask for the wrong one.
"""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn import functional as F

from helpers.published_tables import MOBILENET, RESNET50, Table, lite_layers


def norm(table: Table, key: str, x: Tensor) -> Tensor:
    """BatchNorm by its statistics where the table has them, else instance norm; a missing one is none at all."""
    if f"{key}.weight" not in table:
        return x
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if f"{key}.running_mean" in table:
        mean, var = (table[f"{key}.running_{name}"].view(shape) for name in ("mean", "var"))
    else:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * table[f"{key}.weight"].view(shape) + table[f"{key}.bias"].view(shape)


def split_norm(table: Table, key: str, x: Tensor, *, swapped: bool = False) -> Tensor:
    if f"{key}.IN.weight" not in table:
        return norm(table, key, x)
    first, second = x.chunk(2, 1)
    names = ("BN", "IN") if swapped else ("IN", "BN")
    return cat((norm(table, f"{key}.{names[0]}", first), norm(table, f"{key}.{names[1]}", second)), 1)


def non_local(table: Table, at: str, x: Tensor) -> Tensor:
    """Compare each position with every other, and divide the comparison by their number."""
    g, theta, phi = (
        F.conv2d(x, table[f"{at}.{name}.weight"], table[f"{at}.{name}.bias"]).flatten(2)
        for name in ("g", "theta", "phi")
    )
    likeness = theta.transpose(1, 2) @ phi / x[0, 0].numel()  # (B, positions, positions)
    answer = (likeness @ g.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
    return x + norm(table, f"{at}.W.1", F.conv2d(answer, table[f"{at}.W.0.weight"], table[f"{at}.W.0.bias"]))


def resnet50(
    table: Table,
    x: Tensor,
    prefix: str = "",
    *,
    last_stride: int = 1,
    relu: bool = True,
    ceil: bool = False,
    swapped: bool = False,
    early: bool = False,
    before_sum: bool = False,
) -> Tensor:
    """The last feature map; ``swapped`` halves of IBN-a, ``early`` non-local blocks and an instance norm of IBN-b
    ``before_sum``, on the residual without the shortcut, are mistakes to be caught."""
    table = {key.removeprefix(prefix): tensor for key, tensor in table.items() if key.startswith(prefix)}
    x = norm(table, "bn1", F.conv2d(x, table["conv1.weight"], stride=2, padding=3))
    x = x.relu() if relu else x
    x = F.max_pool2d(x, 3, 2, ceil_mode=True) if ceil else F.max_pool2d(x, 3, 2, padding=1)
    for stage, (_, blocks) in enumerate(RESNET50, 1):
        attentions = sum(f"NL_{stage}.{i}.g.weight" in table for i in range(blocks))
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 1 if block or stage == 1 else last_stride if stage == 4 else 2
            y = split_norm(table, f"{at}.bn1", F.conv2d(x, table[f"{at}.conv1.weight"]), swapped=swapped).relu()
            y = norm(table, f"{at}.bn2", F.conv2d(y, table[f"{at}.conv2.weight"], stride=stride, padding=1)).relu()
            y = norm(table, f"{at}.bn3", F.conv2d(y, table[f"{at}.conv3.weight"]))
            if block == 0:
                x = norm(table, f"{at}.downsample.1", F.conv2d(x, table[f"{at}.downsample.0.weight"], stride=stride))
            x = (x + norm(table, f"{at}.IN", y) if before_sum else norm(table, f"{at}.IN", x + y)).relu()
            number = block if early else block - (blocks - attentions)
            if 0 <= number < attentions:
                x = non_local(table, f"NL_{stage}.{number}", x)
    return x


def mobilenet(table: Table, x: Tensor) -> Tensor:
    def layer(at: str, x: Tensor, stride: int = 1) -> Tensor:
        filters = table[f"{at}.conv.weight"]
        depthwise = at.endswith("dwconv2")
        x = F.conv2d(x, filters, stride=stride, padding=filters.shape[2] // 2, groups=len(filters) if depthwise else 1)
        return norm(table, f"{at}.bn", x).clamp(0, 6)

    x = layer("conv1", x, 2)
    for stage, (_, _, blocks) in enumerate(MOBILENET, 2):
        for block in range(blocks):
            at = f"conv{stage}.{block}"
            y = layer(f"{at}.conv1", x)
            y = layer(f"{at}.dwconv2", y, 2 if block == 0 and stage in (3, 4, 5, 7) else 1)
            y = norm(table, f"{at}.conv3.1", F.conv2d(y, table[f"{at}.conv3.0.weight"]))
            x = x + y if block else y
    return layer("conv9", x)


def osnet(table: Table, x: Tensor, *, late: bool | None = None) -> Tensor:
    """OSNet x1.0 of any variant; ``late`` puts the blocks' instance norm behind the shortcut, or before it."""
    listed = "pool2.0.conv.weight" in table
    late = not listed if late is None else late

    def layer(at: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return norm(table, f"{at}.bn", F.conv2d(x, table[f"{at}.conv.weight"], stride=stride, padding=padding))

    def gate(at: str, x: Tensor) -> Tensor:
        hidden = F.conv2d(x.mean((2, 3), keepdim=True), table[f"{at}.fc1.weight"], table[f"{at}.fc1.bias"]).relu()
        return x * F.conv2d(hidden, table[f"{at}.fc2.weight"], table[f"{at}.fc2.bias"]).sigmoid()

    x = F.max_pool2d(layer("conv1", x, 2, 3).relu(), 3, 2, padding=1)
    for stage in (2, 3, 4):
        for at in (f"conv{stage}.0", f"conv{stage}.1"):
            middle = layer(f"{at}.conv1", x).relu()
            fused = 0
            for stream in lite_layers(at, listed=listed):
                y = middle
                for lite in stream:
                    y = F.conv2d(y, table[f"{lite}.conv1.weight"])
                    y = F.conv2d(y, table[f"{lite}.conv2.weight"], padding=1, groups=y.shape[1])
                    y = norm(table, f"{lite}.bn", y).relu()
                fused = fused + gate(f"{at}.gate", y)
            y = layer(f"{at}.conv3", fused)
            y = y if late else norm(table, f"{at}.IN", y)
            x = y + (layer(f"{at}.downsample", x) if f"{at}.downsample.conv.weight" in table else x)
            x = (norm(table, f"{at}.IN", x) if late else x).relu()
        if stage < 4:
            x = F.avg_pool2d(layer(f"pool{stage}.0" if listed else f"conv{stage}.2.0", x).relu(), 2)
    return layer("conv5", x).relu()


def fc_neck(table: Table, pooled: Tensor) -> Tensor:
    return norm(table, "fc.1", pooled @ table["fc.0.weight"].T + table["fc.0.bias"]).relu()


def gem(power: Tensor, x: Tensor) -> Tensor:
    return x.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)
