# Channels per stage of the architectures, for the heads; a test holds them against the backbone's own table.
# 'small' has those of 'tiny'.
widths = dict(
    tiny=[124, 249, 499, 998],
    base=[166, 332, 665, 1331],
    convnext_tiny=[96, 192, 384, 768],
    convnext_base=[128, 256, 512, 1024],
    convnext_large=[192, 384, 768, 1536],
)
