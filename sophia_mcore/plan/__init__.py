"""Will it fit, how fast is it, what does it cost: estimates of a run on a cluster before anything is started."""
