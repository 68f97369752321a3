"""What `drrkit.training.train` trains here: similarities and regressors, on patients' CTs."""
