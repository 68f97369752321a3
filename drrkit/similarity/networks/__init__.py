"""The networks of the published similarities and regressors."""
