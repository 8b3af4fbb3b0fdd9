"""The models that are edited: opening pipelines, hookpoints, sampling, schedulers, one file a family."""
