"""As small as settings can be; promptmill's own are PROMPTMILL_BROKER_URL and PROMPTMILL_MODEL, in the environment."""

import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "config.urls"
INSTALLED_APPS = ["stories"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "stories.errors.PromptmillErrors"]

# The same broker or another one: our queues begin with "promptmill.", Celery's is "celery".
CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
