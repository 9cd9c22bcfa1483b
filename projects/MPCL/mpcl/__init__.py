"""Multi-prototype contrastive learning for unsupervised domain-adaptive semantic segmentation."""
