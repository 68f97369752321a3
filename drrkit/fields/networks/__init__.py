"""Neural scenes: NeTT, mNeRF and what they are made of."""
