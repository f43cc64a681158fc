"""Class probabilities and anomaly scores from logits at several scales; higher = more anomalous.

`logits_per_scale` is a list of low-resolution (N, C, h_s, w_s) logits, one per scale, and `size`
the (H, W) of the label. Scales are upsampled bilinearly (align_corners=False), then averaged.
"""
