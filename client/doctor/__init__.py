"""Examines a deployment and says what to do: the work behind ``soundmill doctor``.

``deployment`` puts the sections together for a deployment whose settings are at hand, ``remote``
for a gateway that is only reached by its address. Nothing is changed but for one small object that
is written into the store and removed again.
"""
