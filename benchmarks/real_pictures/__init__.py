"""Do large kernels help on photographs? A study paired over seeds; docs/evidence.md has its design and its results."""
