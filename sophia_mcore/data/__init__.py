"""Questions with images from outside, checked; InternVL's image tiles and chat templates."""
