"""What a run will take, told before it is paid for: from a probe of a few hundred images, or from
the rates of a run that was.
"""
