"""The machine file: what it may say (``model``), how it is read (``yaml_source``, ``load``), its schema."""
