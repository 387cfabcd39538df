"""From a checkpoint to a verified bundle. A leaf: nobody imports it."""
