"""Fast operations that the engine is made of: convolutions, int8, RoIAlign, NMS."""
