"""Simulated X-rays.

materials: from HU to densities and attenuation, by the numbers in tables.json. simulation: the
chain from there to a detector's pixels. tools: metal in the beam. randomisation: for training,
random settings of all of it and random changes to finished images.
"""
