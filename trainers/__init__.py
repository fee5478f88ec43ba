"""How one model learns and is measured. Needs torch, open_clip and pydantic alone; only `worker` knows Ray."""
