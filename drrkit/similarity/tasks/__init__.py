"""What is trained: similarities and regressors, their objectives and poses."""
