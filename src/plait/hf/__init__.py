"""Import this, and transformers' Auto classes and pipelines load the models of exports that plait alone has, as they load others."""

from plait.families import registry

registry.register_auto_classes()
