"""From float32 to integers: grids, observers, the canonical graph, prepare, calibrate, convert."""
