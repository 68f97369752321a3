"""What is registered: X-rays with cameras, bodies and their motion, starts, priors."""
