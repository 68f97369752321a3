"""Simulated X-rays: materials, spectra, detectors, tools, randomisation."""
