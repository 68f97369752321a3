"""Training neural scenes from X-rays with known poses."""
