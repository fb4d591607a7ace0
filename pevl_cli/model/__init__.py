"""The PeVL model. These files use tensors and strings only, no videos, detectors or consoles.

Letters for shapes in all of them:

    N clips in a batch      C label texts              d width of a tower     e joint space
    T video frames (16)     S pose frames (48)         J joints               L words of a text
    P patches of a frame    G tokens of a pose frame: its class token, then J joints
"""
