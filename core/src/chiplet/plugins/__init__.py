"""Plugins: manifests, discovery, isolation, selection and explanation."""
