"""Orchestration: run the stages of dvc.yaml, plainly or under Prefect; imports no torch, transformers or mlflow."""
