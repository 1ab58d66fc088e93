"""What people find out about a run: ratings of its samples, why the S-VLM was wrong, how runs
compare.
"""
