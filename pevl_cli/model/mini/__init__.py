"""The parts that only `mini` has: the pose network's layers as its stem, and the body token."""
