"""Training: corpus, data, backbone, loop, engine, monitor, tuner, checkpoint."""
