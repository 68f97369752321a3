"""Registration without a start: a grid of views, matched by FFT."""
