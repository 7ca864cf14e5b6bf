"""Networks: backbones, pooling, necks, and the files their weights are kept in."""
