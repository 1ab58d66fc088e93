"""What training minimizes: one file for each name of `pl.objective`. It defines `load`, a
`mpa_ray.training.objective.LoadObjective`.
"""
