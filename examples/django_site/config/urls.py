from django.urls import path

from stories import views

urlpatterns = [
    path("stories", views.submit),
    path("stories/<str:task_id>", views.poll),
    path("summaries", views.summarise_later),
    path("summaries/<str:task_id>", views.summary),
]
