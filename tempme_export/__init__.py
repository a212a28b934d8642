"""Token-merged CLIP video encoders as verified, deployable bundles."""
