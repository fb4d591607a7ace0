"""People in video frames: detection, tracks, choice of the actor, skeletons, files of poses."""
