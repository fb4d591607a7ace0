"""People in video frames: detection, tracks, the actor, skeletons, and files of poses."""
