"""Simulated X-rays.

materials: from HU to densities and attenuation, by the numbers in tables. simulation: the chain
from there to a detector's pixels. tools: metal in the beam. targets: random settings of all of it,
for training. randomisation: random changes to finished images.
"""
