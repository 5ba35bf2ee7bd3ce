# Channels per stage of the architectures, for the heads; a test holds them against the backbone's own table.
widths = dict(tiny=[124, 249, 499, 998], base=[166, 332, 665, 1331])  # small has tiny's
