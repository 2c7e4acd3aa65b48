"""The subject of the study: images, networks, training, evaluation, timing."""
